"""Annotation costs: what it takes to annotate a case, read from its revealed label.

A cost takes the label file that the oracle handed out for an acquired case, on the scan's own grid,
and returns a number. It is never asked for a case that has not been acquired. A new one is one
function here and one entry in ``COSTS``; ``cost=`` chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from alseg.core.errors import check_choice
from alseg.data.nifti import read_header, reading

AnnotationCost = Callable[[Path], float]


def volume(label: Path, ignore_value: int | None = None) -> float:
    """1: every case costs the same."""
    return 1.0


def voxels(label: Path, ignore_value: int | None = None) -> float:
    """The number of voxels of the scan: all of it has to be looked at."""
    classes = _classes(_load(label))
    return float((classes != ignore_value).sum())


def foreground_voxels(label: Path, ignore_value: int | None = None) -> float:
    """The number of foreground voxels: all of them have to be painted."""
    return float(_foreground(_classes(_load(label)), ignore_value).sum())


def slices(label: Path, ignore_value: int | None = None) -> float:
    """The number of slices with foreground: in each of them contours have to be drawn.

    Slices lie across the axis with the largest voxel spacing, along which a scan is thinnest
    sampled and in whose planes people draw; where spacings agree within 1%, across the axis nearest
    to foot-head.
    """
    image = _load(label)
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    upwards = np.abs(image.affine[2, :3]) / spacing
    coarsest = spacing >= 0.99 * spacing.max()
    axis = int(np.argmax(np.where(coarsest, upwards, -1)))
    others = tuple(i for i in range(3) if i != axis)
    return float(_foreground(_classes(image), ignore_value).any(axis=others).sum())


COSTS: dict[str, Callable[..., float]] = {
    "volume": volume,
    "voxels": voxels,
    "foreground_voxels": foreground_voxels,
    "slices": slices,
}


def cost_named(name: str, ignore_value: int | None = None) -> AnnotationCost:
    """The cost of that name.

    Args:
        name: of the cost.
        ignore_value: what voxels that nobody annotated have in label files, which cost nothing;
            None for none.

    Raises:
        ConfigError: if there is none.
    """
    check_choice("cost", name, COSTS)
    return partial(COSTS[name], ignore_value=ignore_value)


def _load(label: Path) -> Any:
    read_header(label)
    with reading(label):
        image = nibabel.load(label)  # type: ignore[attr-defined]
        image.get_fdata(dtype=np.float32)  # kept by the image; broken files show here
    return image


def _classes(image: Any) -> np.ndarray:
    classes = image.get_fdata(dtype=np.float32)
    return classes.reshape(classes.shape[:3])  # some files end in an axis of one


def _foreground(classes: np.ndarray, ignore_value: int | None) -> np.ndarray:
    return (classes > 0) & (classes != ignore_value)
