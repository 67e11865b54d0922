"""The numbers that the rules of a plan work with, all in one place.

``data.rules`` exchanges some of them: ``data.rules.steps=2000``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from alseg.core.errors import ConfigError, nearest


@dataclass(frozen=True)
class Numbers:
    """What the rules take as given.

    Attributes:
        step_voxels: voxels that a training step may see; what a step costs is about proportional.
        memory_share: of the device's memory that training may take.
        min_batch: patches a step at least; patches shrink to make room for them.
        max_batch: patches a step at most.
        coverage: a patch shows at least this share of the median image; larger images are resampled
            to larger voxels. nnU-Net adds a low resolution below .25.
        filters: of the first level; each further level has twice as many.
        max_filters: of any level.
        max_levels: resolutions of the network.
        min_edge: voxels along an axis of the lowest level (nnU-Net: 4).
        anisotropy: from this ratio of edges on, an axis is coarse (nnU-Net: 3).
        steps: of a round.
        validations: of a round.
        rotation: largest angle of the augmentation about each axis, in radians.
        rotation_in_slices: the same about a coarse axis, the only one there.
        scaling: largest change of size of the augmentation.
        seen_share: of all voxels of the data set that a step sees at most (nnU-Net: .05).
    """

    step_voxels: int
    memory_share: float
    min_batch: int
    max_batch: int
    coverage: float
    filters: int
    max_filters: int
    max_levels: int
    steps: int
    min_edge: int = 4
    anisotropy: float = 3.0
    validations: int = 4
    rotation: float = 0.3
    rotation_in_slices: float = 0.8
    scaling: float = 0.35
    seen_share: float = 0.05

    def with_changes(self, changes: Mapping[str, Any]) -> Numbers:
        """The same numbers with some exchanged.

        Args:
            changes: by name; None leaves a number as it is.

        Raises:
            ConfigError: if there is no such number, or a value is not a number above 0.
        """
        names = [field.name for field in fields(self)]
        changes = {name: value for name, value in changes.items() if value is not None}
        for name, value in changes.items():
            if name not in names:
                raise ConfigError(
                    f"data.rules has no number {name!r}; {nearest(name, names)}allowed are "
                    f"{', '.join(names)}"
                )
            kind = type(getattr(self, name))
            if type(value) not in (int, kind) or value <= 0:
                what = "whole number" if kind is int else "number"
                raise ConfigError(f"data.rules.{name} is {value!r}; it must be a {what} above 0")
        return replace(self, **changes)


# A step of 200,000 voxels and 16 filters takes about a second of one CPU core.
CPU = Numbers(
    step_voxels=200_000,
    memory_share=0.25,
    min_batch=4,
    max_batch=8,
    coverage=0.125,
    filters=16,
    max_filters=256,
    max_levels=5,
    steps=1200,
)
# Two patches of 128 x 128 x 128 voxels and 32 filters: nnU-Net's default, made for 8 GB.
GPU = Numbers(
    step_voxels=2 * 128**3,
    memory_share=0.7,
    min_batch=2,
    max_batch=16,
    coverage=0.125,
    filters=32,
    max_filters=320,
    max_levels=6,
    steps=5000,
)
