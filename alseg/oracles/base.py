"""The oracle: the only way from a query to its labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from alseg.core.errors import NotAnnotatedYetError
from alseg.core.units import Answer, Query


@runtime_checkable
class Oracle(Protocol):
    """Answers a query with labels.

    Attributes:
        annotates_unlabelled: whether it can make labels that the data set does not hold. If it
            cannot, cases without a label are left out of the pool.
    """

    annotates_unlabelled: bool

    def annotate(self, query: Query) -> Answer:
        """Have the units of a query annotated.

        A query may be asked again, by a process that continues a run: the answer then holds what
        has been annotated by now.
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
        raise NotAnnotatedYetError([unit.case_id for unit in answer.pending])
    return answer
