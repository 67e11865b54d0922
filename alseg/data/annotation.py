"""What has been annotated of a case: all of its label, or regions of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alseg.core.errors import DataError
from alseg.core.pool import Pool
from alseg.core.units import Answer, Region
from alseg.data.task import Task
from alseg.strategies.statistics import class_dtype


@dataclass(frozen=True)
class Annotation:
    """What the oracle has revealed of a case's label.

    Attributes:
        path: the label file.
        regions: the boxes of the source image's voxels that have been annotated, of which nothing
            else may be read; None for the whole volume.
    """

    path: Path
    regions: tuple[Region, ...] | None = None


def revealed(answer: Answer, pool: Pool) -> dict[str, Annotation]:
    """What may be read of the labels in an answer, with what could be read of them before.

    Args:
        answer: of the oracle.
        pool: after it.
    """
    return as_annotations({unit.case_id: path for unit, path in answer.labels.items()}, pool)


def as_annotations(labels: Mapping[str, Path], pool: Pool) -> dict[str, Annotation]:
    """What a pool allows to read of some cases' label files: all, or the annotated regions."""
    return {
        case_id: Annotation(path, pool.regions_of(case_id) or None)
        for case_id, path in labels.items()
    }


def partial_dtype(n_classes: int) -> torch.dtype:
    """The type that stores class indices and ``core.units.IGNORED``."""
    return torch.int8 if n_classes < 128 else torch.int32


def label_dtype(label: Tensor, n_classes: int) -> torch.dtype:
    """The type that a label is stored in: ``class_dtype``, unless voxels of it are ignored."""
    is_partial = bool((label < 0).any())
    return partial_dtype(n_classes) if is_partial else class_dtype(n_classes)


def inside_of(regions: Iterable[Region], shape: Sequence[int]) -> Tensor:
    """Which voxels of an image lie in one of some regions, bool [1, D, H, W].

    Args:
        regions: boxes of the image's voxels.
        shape: of the image, [3].

    Raises:
        DataError: if a region does not lie inside the image.
    """
    inside = torch.zeros(1, *shape, dtype=torch.bool)
    for region in regions:
        if not all(0 <= a < b <= n for (a, b), n in zip(region, shape, strict=True)):
            raise DataError(
                f"the region {region} does not lie inside an image of {tuple(shape)} voxels"
            )
        (d, h, w) = (slice(start, stop) for start, stop in region)
        inside[0, d, h, w] = True
    return inside


def annotated_classes(task: Task, case_id: str | None) -> dict[str, Tensor]:
    """Which classes were annotated in a case, as an entry of a sample.

    Args:
        task: the data set.
        case_id: the case; None for a label that holds all classes.

    Returns:
        ``annotated_classes``, bool [C], the background always; nothing if the data set lacks no
        class anywhere.
    """
    if not task.lacks_classes:
        return {}
    annotated = torch.ones(len(task.classes), dtype=torch.bool)
    if case_id is not None:
        annotated[list(task.not_annotated(case_id))] = False
    return {"annotated_classes": annotated}
