"""The pool: which cases are labelled and which are not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alseg.core.units import Answer


@dataclass(frozen=True)
class Pool:
    """An immutable split of the training cases into labelled and unlabelled ones.

    Attributes:
        labelled: case ids in the order in which they were acquired.
        unlabelled: the remaining case ids, sorted.
        repeated: labelled cases that were acquired again, once for each time; they are trained with
            that much more often.

    Raises:
        ValueError: if an id is labelled or unlabelled twice, or repeated without being labelled.
    """

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    repeated: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ids = self.labelled + self.unlabelled
        if len(set(ids)) != len(ids):
            twice = sorted({i for i in ids if ids.count(i) > 1})
            raise ValueError(f"case ids appear twice in the pool: {', '.join(twice)}")
        if unknown := sorted(set(self.repeated) - set(self.labelled)):
            raise ValueError(f"cannot repeat cases that are not labelled: {', '.join(unknown)}")

    @property
    def labelled_with_repeats(self) -> tuple[str, ...]:
        """The labelled cases, those that were acquired again as often as they were."""
        return self.labelled + self.repeated

    @classmethod
    def start(cls, case_ids: Iterable[str], initial: Sequence[str]) -> Pool:
        """The pool before the first round: ``initial`` is labelled, the other cases are not."""
        return cls(labelled=(), unlabelled=tuple(sorted(case_ids))).acquire(initial)

    def acquire(self, case_ids: Sequence[str]) -> Pool:
        """Return the pool after ``case_ids`` have been labelled, in that order.

        Raises:
            ValueError: if an id is not an unlabelled one.
        """
        missing = sorted(set(case_ids) - set(self.unlabelled))
        if missing:
            raise ValueError(f"cannot acquire cases that are not unlabelled: {', '.join(missing)}")
        taken = set(case_ids)
        return Pool(
            labelled=self.labelled + tuple(case_ids),
            unlabelled=tuple(i for i in self.unlabelled if i not in taken),
            repeated=self.repeated,
        )

    def after(self, answer: Answer) -> Pool:
        """Return the pool after an answer: what was labelled already is repeated.

        Raises:
            ValueError: if the answer holds a case that is not in the pool.
        """
        ids, known = list(answer.by_case), set(self.labelled)
        return self.acquire([i for i in ids if i not in known]).repeat(
            [i for i in ids if i in known]
        )

    def repeat(self, case_ids: Sequence[str]) -> Pool:
        """Return the pool in which labelled cases weigh more, by one acquisition each.

        Raises:
            ValueError: if an id is not a labelled one.
        """
        return replace(self, repeated=self.repeated + tuple(case_ids))


def random_start(case_ids: Iterable[str], size: int, seed: int) -> tuple[str, ...]:
    """Draw the initial pool: ``size`` cases, a function of only the seed and the set of ids."""
    ids = sorted(case_ids)
    order = np.random.default_rng(seed).permutation(len(ids))
    return tuple(ids[i] for i in order[:size])
