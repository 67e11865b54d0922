"""Launchers of sweeps on clusters; Hydra looks for plugins in this package only."""
