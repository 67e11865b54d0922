"""Active learning: the rounds, and what each of them does."""
