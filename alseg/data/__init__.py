"""Data: what a data set holds, its preprocessing, the loaders and the oracle."""
