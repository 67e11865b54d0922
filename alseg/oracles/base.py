"""The oracle: the only way from a case to its label."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol


class Oracle(Protocol):
    """Answers a query with labels."""

    def annotate(self, case_ids: Iterable[str]) -> dict[str, Path]:
        """Return the label file of each case that has been annotated."""

    def peek(self, case_ids: Iterable[str]) -> dict[str, Path]:
        """Return the hidden label file of each case, annotated or not.

        For strategies that are flagged with ``reads_labels`` alone, which no person can serve.
        """
