"""A run folder: its state, finished stages, the scores so far, who works on it."""
