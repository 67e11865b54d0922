"""What has been annotated in one go: the voxels of a label file, or of a region of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from alseg.core.units import Region, Unit
from alseg.data.volumes import read_header, read_volume


@dataclass(frozen=True)
class LabelFile:
    """A label file, of which voxels are read when they are first asked for.

    Attributes:
        path: the file.
        shape: its voxels along each axis.
        affine: of the file, [4, 4].
    """

    path: Path
    shape: tuple[int, ...]
    affine: np.ndarray

    @cached_property
    def classes(self) -> np.ndarray:
        """The label values, [D, H, W] along the file's axes."""
        return read_volume((self.path,))[0].numpy()


@dataclass(frozen=True)
class AnnotatedVoxels:
    """The voxels that were annotated in one go.

    Attributes:
        file: the label file.
        region: the part of it; None for all.
        ignore_value: what voxels that nobody annotated have; None for none.
        opens_case: whether the case was opened for it: the first of its case in a query.
    """

    file: LabelFile
    region: Region | None = None
    ignore_value: int | None = None
    opens_case: bool = True

    @classmethod
    def read(cls, label: Path, ignore_value: int | None = None) -> AnnotatedVoxels:
        """A label file, all of it.

        Raises:
            DataError: if its header cannot be read.
        """
        header = read_header(label)
        return cls(LabelFile(label, header.shape[:3], header.affine), ignore_value=ignore_value)

    def within(self, region: Region | None) -> AnnotatedVoxels:
        """The part of the file in a region; all of it for None."""
        return replace(self, region=region)

    @property
    def n_voxels(self) -> int:
        """The number of its voxels, without ignored ones."""
        if self.region is None:
            return self.n_voxels_of_case
        if self.ignore_value is not None:
            return int(self.is_known.sum())
        return math.prod(stop - start for start, stop in self.region)

    @property
    def n_voxels_of_case(self) -> int:
        """Voxels of the whole file, without ignored ones."""
        if self.ignore_value is not None:
            return int((self.file.classes != self.ignore_value).sum())
        return math.prod(self.file.shape)

    @property
    def classes(self) -> np.ndarray:
        """The label values, [d, h, w] along the file's axes."""
        if self.region is None:
            return self.file.classes
        rows, columns, slices = (slice(start, stop) for start, stop in self.region)
        return self.file.classes[rows, columns, slices]

    @cached_property
    def is_known(self) -> np.ndarray:
        """Where somebody has annotated it, bool [d, h, w]."""
        return self.classes != self.ignore_value

    @cached_property
    def foreground(self) -> np.ndarray:
        """Where it holds a foreground class, bool [d, h, w]."""
        return (self.classes > 0) & self.is_known

    def borders(self, axis: int) -> np.ndarray:
        """Where two voxels that follow each other along an axis are of two known classes, bool.

        That axis comes first, and is one shorter.
        """
        classes, known = (np.moveaxis(each, axis, 0) for each in (self.classes, self.is_known))
        return (classes[1:] != classes[:-1]) & known[1:] & known[:-1]

    @cached_property
    def boundary(self) -> np.ndarray:
        """Where one of the six neighbours is of another class, bool [d, h, w]."""
        boundary = np.zeros(self.classes.shape, dtype=bool)
        for axis in range(3):
            at, differ = np.moveaxis(boundary, axis, 0), self.borders(axis)
            at[1:] |= differ
            at[:-1] |= differ
        return boundary


def annotated_units(
    labels: Mapping[Unit, Path], ignore_value: int | None = None
) -> Iterator[tuple[Unit, AnnotatedVoxels]]:
    """What was annotated of each unit of an answer; each file is read once at most."""
    paths = dict.fromkeys((unit.case_id, path) for unit, path in labels.items())
    for case_id, path in paths:
        whole = AnnotatedVoxels.read(path, ignore_value)
        opens_case = True
        for unit in labels:
            if unit.case_id == case_id and labels[unit] == path:
                yield unit, replace(whole.within(unit.region), opens_case=opens_case)
                opens_case = False
