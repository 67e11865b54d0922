"""The pool: which cases are labelled, wholly or in part, and which are not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alseg.core.units import Answer, Query, Region, Unit, overlap


@dataclass(frozen=True)
class Pool:
    """An immutable split of the training cases into labelled and unlabelled ones.

    Attributes:
        labelled: case ids in the order in which they were acquired, as a whole or in part.
        unlabelled: the remaining case ids, sorted.
        repeated: labelled cases that were acquired again, once for each time; they are trained with
            that much more often.
        regions: the annotated regions of partly labelled cases, in the order in which they were
            acquired.

    Raises:
        ValueError: if an id is labelled or unlabelled twice, or repeated without being labelled; if
            a region is none, belongs to no labelled case, or overlaps another one.
    """

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    repeated: tuple[str, ...] = ()
    regions: tuple[Unit, ...] = ()

    def __post_init__(self) -> None:
        ids = self.labelled + self.unlabelled
        if len(set(ids)) != len(ids):
            twice = sorted({i for i in ids if ids.count(i) > 1})
            raise ValueError(f"case ids appear twice in the pool: {', '.join(twice)}")
        if unknown := sorted(set(self.repeated) - set(self.labelled)):
            raise ValueError(f"cannot repeat cases that are not labelled: {', '.join(unknown)}")
        known, by_case = set(self.labelled), dict[str, list[Region]]()
        for unit in self.regions:
            taken = by_case.setdefault(unit.case_id, [])
            if unit.region is None or unit.case_id not in known:
                raise ValueError(f"{unit.name} is not a region of a labelled case")
            if any(overlap(unit.region, other) for other in taken):
                raise ValueError(f"the region {unit.name} overlaps another one that is annotated")
            taken.append(unit.region)

    @property
    def units(self) -> Query:
        """All that is labelled: the whole cases, and then the regions of the others."""
        partly = {unit.case_id for unit in self.regions}
        return (*(Unit(i) for i in self.labelled if i not in partly), *self.regions)

    def regions_of(self, case_id: str) -> tuple[Region, ...]:
        """The annotated regions of a case; none if it is unlabelled, or labelled as a whole."""
        return tuple(u.region for u in self.regions if u.case_id == case_id and u.region)

    @property
    def incomplete(self) -> tuple[str, ...]:
        """The cases of which a region is not annotated yet, as far as anybody knows; sorted."""
        return tuple(sorted({*self.unlabelled, *(unit.case_id for unit in self.regions)}))

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
            regions=self.regions,
        )

    def after(self, answer: Answer) -> Pool:
        """Return the pool after an answer: what was labelled already is repeated.

        Raises:
            ValueError: if the answer holds a case that is not in the pool.
        """
        ids, known = list(answer.by_case), set(self.labelled)
        regions = tuple(unit for unit in answer.labels if unit.region is not None)
        new = dict.fromkeys(unit.case_id for unit in answer.labels)
        pool = self.acquire([i for i in new if i not in known]).repeat(
            [i for i in ids if i in known]
        )
        return replace(pool, regions=pool.regions + regions)

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
