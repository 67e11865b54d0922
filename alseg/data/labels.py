"""Label files: read, and checked against the classes of their data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from monai.data import MetaTensor

from alseg.core.errors import DataError
from alseg.core.units import IGNORED, Region
from alseg.data.annotation import inside_of
from alseg.data.task import Task
from alseg.data.volumes import read_volume


def read_label(
    task: Task, path: Path, regions: Sequence[Region] | None = None
) -> tuple[MetaTensor, np.ndarray]:
    """Read a label file whose grid has been checked.

    Args:
        task: its classes, and what its files hold in ignored voxels.
        path: the file.
        regions: what was annotated of it, and what lies outside is not looked at; None for all.

    Returns:
        Class indices as float32 [1, D, H, W], ``IGNORED`` where a voxel was not annotated; and the
        values that occur, sorted, int64.

    Raises:
        DataError: if the file is broken, or holds a value that is not a class.
    """
    label, n_classes = read_volume((path,)), len(task.classes)
    annotated = None if regions is None else inside_of(tuple(regions), label.shape[1:])
    values = np.unique(label.numpy() if annotated is None else label.numpy()[annotated])
    ignored = task.ignore_value
    wrong = [float(v) for v in values if v not in range(n_classes) and v != ignored]
    if wrong:
        raise DataError(
            f"label {path} holds {wrong[:5]}; allowed are 0 to {n_classes - 1} "
            f"({', '.join(task.classes)})"
            f"{f' and {ignored} (ignored)' if ignored is not None else ''}"
        )
    if ignored is not None:
        label[label == ignored] = IGNORED
    if annotated is not None:
        label[~annotated] = IGNORED
    return label, np.unique(label.numpy()).astype(np.int64)
