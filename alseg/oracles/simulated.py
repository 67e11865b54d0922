"""The oracle of a simulation: it knows all labels of the data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from cachetools import LRUCache

from alseg.core.errors import ConfigError
from alseg.core.units import Answer, Query
from alseg.data.headers import label_of
from alseg.data.task import Task
from alseg.data.volumes import read_volume
from alseg.oracles.base import Propose

_REMEMBERED = 2**28  # bytes of masks that are kept at hand


class SimulatedOracle:
    """Reveals labels that the data set already holds, at once: nothing is ever pending.

    Cases without a label are not in its pool. Training and scoring never get the task's label
    paths, only what was revealed here.
    """

    annotates_unlabelled = False
    measures_minutes = False

    def __init__(self, task: Task, folder: Path | None = None) -> None:
        self._cases, self._ignored = task.cases, task.ignore_value
        self._masks: LRUCache[str, np.ndarray] = LRUCache(_REMEMBERED, lambda mask: mask.nbytes)

    def request(
        self,
        name: str,
        query: Query,
        scores: Mapping[str, float],
        propose: Propose | None = None,
    ) -> Query:
        """Nobody has to be asked."""
        return ()

    def annotate(self, query: Query) -> Answer:
        """The label file of each unit's case."""
        return Answer({unit: label_of(self._cases[unit.case_id]) for unit in query})

    def labels_for_round(self, round_number: int, case_ids: Iterable[str]) -> dict[str, Path]:
        """The label file of each case."""
        return self._labels(case_ids)

    def minutes(self, label: Path) -> float:
        """Refuse: a simulation takes nobody's time.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a simulated annotation takes no minutes")

    def annotatable(self, case_id: str) -> np.ndarray | None:
        """Which voxels the label does not ignore; see ``Oracle.annotatable``.

        Raises:
            DataError: if the label cannot be read.
        """
        if self._ignored is None:
            return None
        if case_id in self._masks:
            mask = self._masks[case_id]
        else:
            mask = read_volume((label_of(self._cases[case_id]),))[0].numpy() != self._ignored
            mask = mask[:0] if mask.all() else mask
            if mask.nbytes <= _REMEMBERED:
                self._masks[case_id] = mask
        return mask if mask.size else None

    def peek(self, case_ids: Iterable[str]) -> dict[str, Path]:
        """Return the hidden label file of each case."""
        return self._labels(case_ids)

    def _labels(self, case_ids: Iterable[str]) -> dict[str, Path]:
        return {case_id: label_of(self._cases[case_id]) for case_id in case_ids}
