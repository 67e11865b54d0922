"""The page in the browser on which people annotate what a run asks for."""
