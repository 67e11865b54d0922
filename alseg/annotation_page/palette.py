"""The classes of a data set as the page shows them."""

from __future__ import annotations

from typing import Any

from alseg.core.errors import DataError
from alseg.data.task import Task

MOST_CLASSES = 255  # a drawing has a byte a voxel


def palette_of(task: Task) -> list[dict[str, Any]]:
    """What each value of a drawing means, for JSON; the background first.

    Raises:
        DataError: if the data set has more classes than a drawing can tell apart.
    """
    if max(len(task.classes) - 1, task.ignore_value or 0) > MOST_CLASSES:
        raise DataError(
            f"{task.root} has {len(task.classes)} classes; the page draws up to {MOST_CLASSES}"
        )
    palette = [{"value": value, "name": name} for value, name in enumerate(task.classes)]
    if task.ignore_value is not None:
        palette.append({"value": task.ignore_value, "name": "ignore (not annotated)"})
    return palette
