"""What is annotated: units, queries of them, and the answers to queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# A box of the source image's own voxels: where it starts and stops along each axis.
Region = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

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


Query = tuple[Unit, ...]  # in the order of acquisition


def whole(case_ids: Iterable[str]) -> Query:
    """A query for whole volumes."""
    return tuple(Unit(case_id) for case_id in case_ids)


@dataclass(frozen=True)
class Answer:
    """What came of a query.

    Attributes:
        labels: the label file of each unit that has been annotated, in the order of the query.
        pending: the units that have not been annotated yet.
    """

    labels: Mapping[Unit, Path]
    pending: Query = ()

    @property
    def by_case(self) -> dict[str, Path]:
        """The label files of the cases that have been annotated as a whole."""
        return {unit.case_id: path for unit, path in self.labels.items() if unit.region is None}
