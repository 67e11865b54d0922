"""The smallest things: units, the pool, seeds, errors. Imports nothing of alseg."""
