"""The smallest things: cases and the pool, seeds, errors. Imports nothing of alseg."""
