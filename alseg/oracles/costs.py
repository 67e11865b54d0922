"""Annotation costs: what it takes to annotate a unit, read from its revealed label, or measured.

A cost takes what was annotated in one go, a volume or a region of it, on the scan's own grid, and
returns a number. It is never asked for a unit that has not been acquired. A new one is one function
here and one entry in ``COSTS``; ``cost=`` chooses. ``cost=minutes`` asks the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from alseg.core.errors import ConfigError, check_choice, check_number
from alseg.data.regions import slice_axis
from alseg.oracles.annotated_voxels import AnnotatedVoxels
from alseg.oracles.base import Oracle

AnnotationCost = Callable[[AnnotatedVoxels], float]


@dataclass(frozen=True)
class Effort:
    """A person's minutes: a model to be set, as nobody's minutes are another's.

    Attributes:
        minutes_per_case: to open a case and find one's way in it, each time it is asked for.
        minutes_per_region: to go to a volume or a region of a case and confirm it.
        minutes_per_cm: to draw a centimetre of contour.

    Raises:
        ConfigError: if a number is negative, or all are 0.
    """

    minutes_per_case: float = 1.0
    minutes_per_region: float = 0.2
    minutes_per_cm: float = 0.02

    def __post_init__(self) -> None:
        for field in fields(self):
            check_number(f"effort.{field.name}", getattr(self, field.name), at_least=0)
        if not any(getattr(self, field.name) for field in fields(self)):
            raise ConfigError("each number of effort is 0, and so is the cost of all that is asked")


def volume(annotated: AnnotatedVoxels) -> float:
    """1 for a volume, so that every case costs the same; for a region its share of the voxels.

    Of those that are not ignored, so that the regions of a case add up to 1.
    """
    if annotated.region is None:
        return 1.0
    return annotated.n_voxels / annotated.n_voxels_of_case


def voxels(annotated: AnnotatedVoxels) -> float:
    """The number of voxels: all of them have to be looked at."""
    return float(annotated.is_known.sum())


def foreground_voxels(annotated: AnnotatedVoxels) -> float:
    """The number of foreground voxels: all of them have to be painted."""
    return float(annotated.foreground.sum())


def slices(annotated: AnnotatedVoxels) -> float:
    """The number of slices with foreground: in each of them contours have to be drawn.

    Slices lie across the axis that ``slice_axis`` gives.
    """
    axis = slice_axis(annotated.file.affine)
    others = tuple(i for i in range(3) if i != axis)
    return float(annotated.foreground.any(axis=others).sum())


def effort(annotated: AnnotatedVoxels, *, minutes: Effort) -> float:
    """A person's minutes: for the case, once a query; for the unit; and for its contours."""
    opening = minutes.minutes_per_case if annotated.opens_case else 0.0
    drawing = minutes.minutes_per_cm * contour_mm(annotated) / 10
    return opening + minutes.minutes_per_region + drawing


def contour_mm(annotated: AnnotatedVoxels) -> float:
    """The length of the contours in all slices, in mm: where one class meets another in a plane.

    Along the edges of voxels, which makes a slanted line longer, a circle by 4 / pi. What is cut at
    the border of a region is not a contour.
    """
    axis = slice_axis(annotated.file.affine)
    spacing = np.linalg.norm(annotated.file.affine[:3, :3], axis=0)
    first, second = (i for i in range(3) if i != axis)
    length = 0.0
    for along, across in ((first, second), (second, first)):
        length += float(annotated.borders(along).sum()) * float(spacing[across])
    return length


COSTS: dict[str, Callable[..., float]] = {
    "volume": volume,
    "voxels": voxels,
    "foreground_voxels": foreground_voxels,
    "slices": slices,
    "effort": effort,
}


MINUTES = "minutes"  # the cost that an oracle measures
NAMES = (*COSTS, MINUTES)


def cost_named(name: str, minutes: Effort | None = None) -> AnnotationCost:
    """The cost of that name, read from a label.

    Args:
        name: of the cost.
        minutes: what ``effort`` is computed from.

    Raises:
        ConfigError: if there is none.
    """
    check_choice("cost", name, COSTS)
    return partial(effort, minutes=minutes or Effort()) if name == "effort" else COSTS[name]


def cost_by(oracle: Oracle, name: str, minutes: Effort | None = None) -> AnnotationCost:
    """The cost of that name, whether it is read from a label or measured by the oracle.

    Raises:
        ConfigError: if there is none, or it is minutes and the oracle measures none.
    """
    if name != MINUTES:
        return cost_named(name, minutes)
    if not oracle.measures_minutes:
        raise ConfigError(
            "cost=minutes counts the minutes that people say an annotation took, and this oracle "
            f"measures none; choose oracle=person, or one of {', '.join(COSTS)}"
        )
    return lambda annotated: oracle.minutes(annotated.file.path)


def contents(annotated: AnnotatedVoxels, minutes: Effort | None = None) -> dict[str, Any]:
    """What a region holds: columns of queries.csv.

    Returns:
        ``voxels``, ``foreground_voxels``, ``slices`` and ``effort``, as the costs of these names;
        ``boundary_voxels``, those beside a voxel of another class within the region;
        ``inner_voxels``, those of the foreground that are not; ``classes``, the label values of
        the foreground that it holds.
    """
    values = np.unique(annotated.classes[annotated.foreground]).astype(int)
    names = ("voxels", "foreground_voxels", "slices", "effort")
    return {
        **{name: cost_named(name, minutes)(annotated) for name in names},
        "boundary_voxels": float(annotated.boundary.sum()),
        "inner_voxels": float((annotated.foreground & ~annotated.boundary).sum()),
        "classes": " ".join(map(str, values)),
    }
