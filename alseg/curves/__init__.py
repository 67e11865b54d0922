"""Learning curves: models fitted to them, and what these forecast."""
