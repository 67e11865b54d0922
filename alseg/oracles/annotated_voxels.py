"""What has been annotated in one go: the voxels of a label file, or of a region of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from alseg.core.units import Region, Unit
from alseg.data.volumes import read_volume


@dataclass(frozen=True)
class AnnotatedVoxels:
    """The voxels that were annotated in one go.

    Attributes:
        classes: the label values, [d, h, w] along the file's axes.
        affine: of the file, [4, 4].
        path: the label file.
        n_voxels_of_case: voxels of the whole file.
        ignore_value: what voxels that nobody annotated have; None for none.
        opens_case: whether the case was opened for it: the first of its case in a query.
    """

    classes: np.ndarray
    affine: np.ndarray
    path: Path
    n_voxels_of_case: int
    ignore_value: int | None = None
    opens_case: bool = True

    @classmethod
    def read(cls, label: Path, ignore_value: int | None = None) -> AnnotatedVoxels:
        """A label file, all of it.

        Raises:
            DataError: if it cannot be read.
        """
        volume = read_volume((label,))
        classes = volume[0].numpy()
        return cls(classes, volume.affine.numpy(), label, classes.size, ignore_value)

    def within(self, region: Region | None) -> AnnotatedVoxels:
        """The part of it in a region; all of it for None."""
        if region is None:
            return self
        rows, columns, slices = (slice(start, stop) for start, stop in region)
        return replace(self, classes=self.classes[rows, columns, slices])

    @property
    def n_voxels(self) -> int:
        """The number of its voxels."""
        return int(self.classes.size)

    @cached_property
    def is_known(self) -> np.ndarray:
        """Where somebody has annotated it, bool [d, h, w]."""
        return self.classes != self.ignore_value

    @cached_property
    def foreground(self) -> np.ndarray:
        """Where it holds a foreground class, bool [d, h, w]."""
        return (self.classes > 0) & self.is_known

    @cached_property
    def boundary(self) -> np.ndarray:
        """Where one of the six neighbours is of another class, bool [d, h, w]."""
        boundary = np.zeros(self.classes.shape, dtype=bool)
        for axis in range(3):
            classes, known, at = (
                np.moveaxis(volume, axis, 0) for volume in (self.classes, self.is_known, boundary)
            )
            differ = (classes[1:] != classes[:-1]) & known[1:] & known[:-1]
            at[1:] |= differ
            at[:-1] |= differ
        return boundary


def annotated_units(
    labels: Mapping[Unit, Path], ignore_value: int | None = None
) -> Iterator[tuple[Unit, AnnotatedVoxels]]:
    """What was annotated of each unit of an answer; each file is read once, one at a time."""
    paths = dict.fromkeys((unit.case_id, path) for unit, path in labels.items())
    for case_id, path in paths:
        whole = AnnotatedVoxels.read(path, ignore_value)
        opens_case = True
        for unit in labels:
            if unit.case_id == case_id and labels[unit] == path:
                yield unit, replace(whole.within(unit.region), opens_case=opens_case)
                opens_case = False
