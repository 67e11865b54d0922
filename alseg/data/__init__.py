"""Data sets: formats, files of volumes, tasks and splits, preprocessing and its cache, loaders."""
