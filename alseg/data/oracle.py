"""The oracle: the only way from a case to its label."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from alseg.data.cases import Task


class Oracle(Protocol):
    """Answers a query with labels."""

    def annotate(self, case_ids: Iterable[str]) -> dict[str, Path]:
        """Return the label file of each case that has been annotated."""

    def peek(self, case_ids: Iterable[str]) -> dict[str, Path]:
        """Return the hidden label file of each case, annotated or not.

        For strategies that are flagged with ``reads_labels`` alone, which no person can serve.
        """


class SimulatedOracle:
    """Reveals labels that the data set already holds, at once.

    Training and scoring never get the task's label paths, only what was revealed here.
    """

    def __init__(self, task: Task) -> None:
        self._labels = {case.id: case.label for case in task.cases.values()}

    def annotate(self, case_ids: Iterable[str]) -> dict[str, Path]:
        """Return the label file of each case."""
        return {case_id: self._labels[case_id] for case_id in case_ids}

    def peek(self, case_ids: Iterable[str]) -> dict[str, Path]:
        """Return the hidden label file of each case."""
        return {case_id: self._labels[case_id] for case_id in case_ids}
