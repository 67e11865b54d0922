"""Annotation costs: what it takes to annotate a case, read from its revealed label.

A cost takes the label file that the oracle handed out for an acquired case, on the scan's own grid,
and returns a number. It is never asked for a case that has not been acquired. A new one is one
function here and one entry in ``COSTS``; ``cost=`` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from alseg.core.errors import check_choice
from alseg.data.nifti import read_header, reading
from alseg.data.regions import slice_axis

AnnotationCost = Callable[[Path], float]


def volume(label: Path) -> float:
    """1: every case costs the same."""
    return 1.0


def voxels(label: Path) -> float:
    """The number of voxels of the scan: all of it has to be looked at."""
    return float(math.prod(_load(label).shape))


def foreground_voxels(label: Path) -> float:
    """The number of foreground voxels: all of them have to be painted."""
    return float((_classes(_load(label)) > 0).sum())


def slices(label: Path) -> float:
    """The number of slices with foreground: in each of them contours have to be drawn.

    Slices lie across the axis that ``slice_axis`` gives.
    """
    image = _load(label)
    axis = slice_axis(image.affine)
    others = tuple(i for i in range(3) if i != axis)
    return float((_classes(image) > 0).any(axis=others).sum())


COSTS: dict[str, AnnotationCost] = {
    "volume": volume,
    "voxels": voxels,
    "foreground_voxels": foreground_voxels,
    "slices": slices,
}


def cost_named(name: str) -> AnnotationCost:
    """The cost of that name.

    Raises:
        ConfigError: if there is none.
    """
    check_choice("cost", name, COSTS)
    return COSTS[name]


def _load(label: Path) -> Any:
    read_header(label)
    with reading(label):
        image = nibabel.load(label)  # type: ignore[attr-defined]
        image.get_fdata(dtype=np.float32)  # kept by the image; broken files show here
    return image


def _classes(image: Any) -> np.ndarray:
    classes = image.get_fdata(dtype=np.float32)
    return classes.reshape(classes.shape[:3])  # some files end in an axis of one
