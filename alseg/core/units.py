"""What is annotated: units, queries of them, and the answers to queries."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# A box of the source image's own voxels: where it starts and stops along each axis.
Region = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

VOLUME = "volume"
PLURALS = {VOLUME: "volumes", "patch": "patches", "slice": "slices"}  # of pool.unit
IGNORED = -1  # in a label: the voxel was not annotated, and no loss or metric looks at it


@dataclass(frozen=True)
class Unit:
    """What is annotated in one go.

    Attributes:
        case_id: the case.
        region: the part of it; None for the whole volume.
    """

    case_id: str
    region: Region | None = None

    @property
    def name(self) -> str:
        """Its name in tables: the case, and behind it the region as NumPy would slice it."""
        return self.case_id if self.region is None else f"{self.case_id}[{self.where}]"

    @property
    def where(self) -> str | None:
        """Its region as text, such as ``0:16,8:24,3:4``."""
        if self.region is None:
            return None
        return ",".join(f"{start}:{stop}" for start, stop in self.region)


Query = tuple[Unit, ...]  # in the order of acquisition


def whole(case_ids: Iterable[str]) -> Query:
    """A query for whole volumes."""
    return tuple(Unit(case_id) for case_id in case_ids)


def as_region(edges: Any) -> Region:
    """A region out of JSON.

    Raises:
        ValueError: if it is not a box of whole numbers.
    """
    box = tuple((start, stop) for start, stop in edges)
    if len(box) != 3 or not all(
        type(start) is int and type(stop) is int and 0 <= start < stop for start, stop in box
    ):
        raise ValueError(f"{edges!r} is not a box: (start, stop) of voxels along three axes")
    return box


def as_unit(content: Mapping[str, Any]) -> Unit:
    """A unit out of JSON, as ``dataclasses.asdict`` makes it.

    Raises:
        KeyError: if it names no case or no region, which may be None.
        ValueError: as ``as_region``.
    """
    region = content["region"]
    return Unit(content["case_id"], None if region is None else as_region(region))


def region_from_text(where: str) -> Region:
    """A region out of what ``Unit.where`` gives.

    Raises:
        ValueError: if it is none.
    """
    return as_region([int(edge) for edge in side.split(":")] for side in where.split(","))


def overlap(a: Region, b: Region) -> bool:
    """Whether two regions of one image have a voxel in common."""
    return all(max(p[0], q[0]) < min(p[1], q[1]) for p, q in zip(a, b, strict=True))


@dataclass(frozen=True)
class Answer:
    """What came of a query.

    Units that are neither labelled nor pending are given up: they go back to the pool.

    Attributes:
        labels: the label file of each unit that has been annotated, in the order of the query.
        pending: the units that have not been annotated yet, without which nothing continues.
        unrequested: the label files of units that have been annotated without being in the query.
        what_to_do: how to have the pending units annotated, for a person to read.
    """

    labels: Mapping[Unit, Path]
    pending: Query = ()
    unrequested: Mapping[Unit, Path] = field(default_factory=dict)
    what_to_do: str = ""

    @property
    def by_case(self) -> dict[str, Path]:
        """The label files of the cases that have been annotated as a whole."""
        return {unit.case_id: path for unit, path in self.labels.items() if unit.region is None}

    def with_unrequested(self, unlabelled: Collection[str]) -> Answer:
        """The answer with the labels that were not asked for, of cases that had none before."""
        new = {u: path for u, path in self.unrequested.items() if u.case_id in unlabelled}
        return replace(self, labels={**self.labels, **new}, unrequested={})
