"""Annotation costs: what it takes to annotate a case, read from its revealed label, or measured.

A cost takes the label file that the oracle handed out for an acquired case, on the scan's own grid,
and returns a number. It is never asked for a case that has not been acquired. A new one is one
function here and one entry in ``COSTS``; ``cost=`` chooses. ``cost=minutes`` asks the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from alseg.core.errors import ConfigError, check_choice
from alseg.data.nifti import read_volume
from alseg.oracles.base import Oracle

AnnotationCost = Callable[[Path], float]


def volume(label: Path, ignore_value: int | None = None) -> float:
    """1: every case costs the same."""
    return 1.0


def voxels(label: Path, ignore_value: int | None = None) -> float:
    """The number of voxels of the scan: all of it has to be looked at."""
    return float((_load(label)[0] != ignore_value).sum())


def foreground_voxels(label: Path, ignore_value: int | None = None) -> float:
    """The number of foreground voxels: all of them have to be painted."""
    return float(_foreground(_load(label)[0], ignore_value).sum())


def slices(label: Path, ignore_value: int | None = None) -> float:
    """The number of slices with foreground: in each of them contours have to be drawn.

    Slices lie across the axis with the largest voxel spacing, along which a scan is thinnest
    sampled and in whose planes people draw; where spacings agree within 1%, across the axis nearest
    to foot-head.
    """
    classes, affine = _load(label)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    upwards = np.abs(affine[2, :3]) / spacing
    coarsest = spacing >= 0.99 * spacing.max()
    axis = int(np.argmax(np.where(coarsest, upwards, -1)))
    others = tuple(i for i in range(3) if i != axis)
    return float(_foreground(classes, ignore_value).any(axis=others).sum())


COSTS: dict[str, Callable[..., float]] = {
    "volume": volume,
    "voxels": voxels,
    "foreground_voxels": foreground_voxels,
    "slices": slices,
}


MINUTES = "minutes"  # the cost that an oracle measures
NAMES = (*COSTS, MINUTES)


def cost_named(name: str, ignore_value: int | None = None) -> AnnotationCost:
    """The cost of that name, read from a label.

    Args:
        name: of the cost.
        ignore_value: what voxels that nobody annotated have in label files, which cost nothing;
            None for none.

    Raises:
        ConfigError: if there is none.
    """
    check_choice("cost", name, COSTS)
    return partial(COSTS[name], ignore_value=ignore_value)


def cost_by(oracle: Oracle, name: str, ignore_value: int | None = None) -> AnnotationCost:
    """The cost of that name, be it read from a label or measured by the oracle.

    Raises:
        ConfigError: if there is none, or it is minutes and the oracle measures none.
    """
    if name != MINUTES:
        return cost_named(name, ignore_value)
    if not oracle.measures_minutes:
        raise ConfigError(
            "cost=minutes counts the minutes that people say an annotation took, and this oracle "
            f"measures none; choose oracle=person, or one of {', '.join(COSTS)}"
        )
    return oracle.minutes


def _load(label: Path) -> tuple[np.ndarray, np.ndarray]:
    """The classes [D, H, W] and the voxel-to-world matrix [4, 4]."""
    volume = read_volume((label,))
    return volume[0].numpy(), volume.affine.numpy()


def _foreground(classes: np.ndarray, ignore_value: int | None) -> np.ndarray:
    return np.asarray((classes > 0) & (classes != ignore_value))
