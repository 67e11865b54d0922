"""The oracle: the only way from a query to its labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from alseg.core.errors import NotAnnotatedYetError
from alseg.core.units import Answer, Query

# Writes a proposed segmentation and an uncertainty map of some units below a folder.
Propose = Callable[[Query, Path], None]


@runtime_checkable
class Oracle(Protocol):
    """Answers a query with labels.

    Attributes:
        annotates_unlabelled: whether it can make labels that the data set does not hold. If it
            cannot, cases without a label are left out of the pool.
        measures_minutes: whether it knows how long annotations take.
    """

    annotates_unlabelled: bool
    measures_minutes: bool

    def request(
        self,
        name: str,
        query: Query,
        scores: Mapping[str, float],
        propose: Propose | None = None,
    ) -> Query:
        """Put a query before whoever annotates, ahead of ``annotate``; a second call does nothing.

        Args:
            name: of the query: ``initial``, ``round_01``, ...
            query: the units, in the order of acquisition.
            scores: by case, where there is one.
            propose: proposes segmentations, for those who want them; None where no network can.

        Returns:
            The units that somebody has to annotate now: for a simulation none.
        """

    def annotate(self, query: Query) -> Answer:
        """Have the units of a query annotated.

        A query may be asked again, by a process that continues a run: the answer then holds what
        has been annotated by now.
        """

    def labels_for_round(self, round_number: int, case_ids: Iterable[str]) -> dict[str, Path]:
        """The label file of each labelled case that a round works with.

        A round that is asked about again, by another process, gets the same ones.
        """

    def minutes(self, label: Path) -> float:
        """The minutes that it took to make a label file which the oracle has handed out.

        Raises:
            NotAnnotatedYetError: if nobody has said it yet.
            ConfigError: if the oracle measures none.
        """

    def annotatable(self, case_id: str) -> np.ndarray | None:
        """Which voxels of a case it can annotate, bool along the axes of the file; None for all.

        It says nothing of what is in them, and so any strategy may know it, as it may know which
        cases are in the pool.
        """

    def peek(self, case_ids: Iterable[str]) -> dict[str, Path]:
        """Return the hidden label file of each case, annotated or not.

        Only for strategies that are flagged with ``reads_labels``, which no person can serve.
        """


def annotated(oracle: Oracle, query: Query) -> Answer:
    """The answer to a query that nothing is missing of.

    Raises:
        NotAnnotatedYetError: if a unit is pending.
    """
    answer = oracle.annotate(query)
    if answer.pending:
        raise NotAnnotatedYetError([u.case_id for u in answer.pending], answer.what_to_do)
    return answer
