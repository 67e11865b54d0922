"""The machine: files, processes, signals, the screen, passwords."""
