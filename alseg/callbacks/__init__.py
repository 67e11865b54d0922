"""Callbacks: acquisition, pictures of the queries, progress."""
