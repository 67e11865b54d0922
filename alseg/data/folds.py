"""Cross-validation: every annotated case validates once, and trains in all other folds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from alseg.core.errors import check_whole_number
from alseg.data.splits import Parts


@dataclass(frozen=True)
class CrossValidation:
    """Folds over the annotated cases of a round.

    Sorted by a hash of their ids, the cases are dealt to the folds in turn, so that folds differ in
    size by one case at most. Nothing but the ids decides, so folds are the same for all seeds; with
    other cases they are others, and a case that stays may come to another fold.

    Attributes:
        folds: at least 2; of fewer annotated cases there are as many folds as cases.
    """

    folds: int

    def __post_init__(self) -> None:
        check_whole_number("validation.folds", self.folds, at_least=2)

    def parts(self, annotated: Sequence[str]) -> tuple[Parts, ...]:
        """What each fold's network trains with, and which cases it judges: those of the fold.

        Args:
            annotated: at least two cases; one that is given twice trains twice, and validates once.
        """
        ids = sorted(set(annotated), key=_place)
        n_folds = min(self.folds, len(ids))
        return tuple(
            Parts(
                training=tuple(i for i in annotated if i not in ids[number::n_folds]),
                validation=tuple(sorted(ids[number::n_folds])),
            )
            for number in range(n_folds)
        )


def held_out() -> None:
    """What ``validation=held_out`` makes: cases validate that are never trained on."""


def _place(case_id: str) -> bytes:
    return hashlib.sha256(repr(("fold", case_id)).encode()).digest()
