"""From a network and a volume to a score: sources of passes, their savings, races."""
