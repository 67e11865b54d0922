"""A run folder: its state, finished stages, scores on their way, who works on it."""
