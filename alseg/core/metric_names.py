"""What the metrics of an evaluation are called, in settings, columns and tables."""

from __future__ import annotations

DICE, SURFACE_DICE, HD95 = "dice", "surface_dice", "hd95"
# in the order of columns and tables
TITLES = {DICE: "Dice", SURFACE_DICE: "surface Dice", HD95: "HD95 (mm)"}
UNDEFINED_HD95 = f"undefined_{HD95}"  # how many distances do not exist, and count as a diagonal
