"""What is done to networks: committees, dropout and its placement, their features."""
