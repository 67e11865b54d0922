"""Label files: read, and held to the image and the classes of their case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from monai.data import MetaTensor

from alseg.core.errors import DataError
from alseg.data.nifti import read_volume
from alseg.data.task import Task


def read_label(task: Task, path: Path) -> tuple[MetaTensor, np.ndarray]:
    """Read a label file whose grid has been checked.

    Returns:
        Class indices as float32 [1, D, H, W], and the values that occur, sorted.

    Raises:
        DataError: if the file is broken, or holds a value that is no class.
    """
    label = read_volume((path,))
    n_classes = len(task.classes)
    values = np.unique(label.numpy())
    wrong = [float(v) for v in values if v not in range(n_classes)]
    if wrong:
        raise DataError(
            f"label {path} holds the value(s) {wrong[:5]}; allowed are 0 to {n_classes - 1} "
            f"({', '.join(task.classes)})"
        )
    return label, values
