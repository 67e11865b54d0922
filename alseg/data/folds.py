"""Cross-validation: every annotated case validates once, and trains in all other folds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from alseg.core.errors import check_whole_number
from alseg.core.groups import grouped_by, members_by_group
from alseg.data.splits import Parts


@dataclass(frozen=True)
class CrossValidation:
    """Folds over the annotated cases of a round.

    Groups of cases are dealt to the folds, the largest first, each to the fold that has the fewest
    cases by then; those of one size in the order of a hash of their names. So no group is in two
    folds, and where each case is a group of its own folds differ in size by one case at most.
    Nothing but the ids decides, so folds are the same for all seeds; with other cases they are
    others, and a case that stays may come to another fold.

    Attributes:
        folds: at least 2; of fewer groups there are as many folds as groups.
        groups: which cases belong together, as ``grouped_by`` takes it.
    """

    folds: int
    groups: str | None = None

    def __post_init__(self) -> None:
        check_whole_number("validation.folds", self.folds, at_least=2)
        grouped_by(self.groups)  # refuses what is no regular expression

    def parts(self, annotated: Sequence[str]) -> tuple[Parts, ...]:
        """What each fold's network trains with, and which cases it judges: those of the fold.

        Args:
            annotated: cases of at least two groups; one that is given twice trains twice, and
                validates once.
        """
        groups = members_by_group(sorted(set(annotated)), self.groups)
        folds: list[list[str]] = [[] for _ in range(min(self.folds, len(groups)))]
        for name in sorted(groups, key=lambda name: (-len(groups[name]), _place(name))):
            min(folds, key=len).extend(groups[name])
        return tuple(
            Parts(
                training=tuple(i for i in annotated if i not in fold),
                validation=tuple(sorted(fold)),
            )
            for fold in folds
        )


def held_out() -> None:
    """What ``validation=held_out`` makes: cases validate that are never trained on."""


def _place(group: str) -> bytes:
    return hashlib.sha256(repr(("fold", group)).encode()).digest()
