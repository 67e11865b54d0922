"""Strategies: measure x aggregation x selector; only torch and NumPy."""
