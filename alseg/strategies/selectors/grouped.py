"""Selectors that know which cases belong together, such as two scans of one patient.

A group is told by a regular expression, its ``pattern``: what it finds at the beginning of a case's
id, the first bracket of it if it has one, names the group. ``patient\\d+`` puts
``patient001_frame01`` and ``patient001_frame02`` into one. A case in which it finds nothing is a
group of its own, and so is each case where the pattern is None. Regions belong to their case.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from alseg.strategies.selectors.candidates import Candidates, Selector
from alseg.strategies.selectors.noisy import random
from alseg.strategies.selectors.ranked import top_k


def one_per_group(
    candidates: Candidates,
    query_size: int,
    rng: np.random.Generator,
    *,
    pattern: str | None,
    rank: Selector = top_k,
) -> list[str]:
    """The best case of each group of which none is labelled or chosen; only then further ones.

    Two scans of one patient show the same anatomy and are uncertain for the same reason, so a top-k
    often takes both, and the second teaches less than its score says.

    Bias: a group of many cases gets no more than a group of one, until each has a labelled case.

    Args:
        candidates: the unlabelled cases, with what ``rank`` looks at.
        query_size: how many to choose.
        rng: handed on.
        pattern: of the groups, see above.
        rank: a selector that can order all candidates, the first one first.

    Raises:
        ValueError: if the pattern is no regular expression.
    """
    group = _groups(pattern)
    case_of = dict(zip(candidates.ids, candidates.cases or candidates.ids, strict=True))
    covered = {group(case_id) for case_id in candidates.labelled}
    fresh: list[str] = []
    further: list[str] = []
    for name in rank(candidates, len(candidates.ids), rng):
        (further if group(case_of[name]) in covered else fresh).append(name)
        covered.add(group(case_of[name]))
    return [*fresh, *further][:query_size]


def random_per_group(
    candidates: Candidates, query_size: int, rng: np.random.Generator, *, pattern: str | None
) -> list[str]:
    """Draw uniformly, at most one case of a group as long as there are fresh ones.

    What ``one_per_group`` has to be compared with: it has the groups and no score.
    """
    return one_per_group(candidates, query_size, rng, pattern=pattern, rank=random)


def _groups(pattern: str | None) -> Callable[[str], str]:
    """From a case's id to the name of its group."""
    if pattern is None:
        return str
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the pattern of groups {pattern!r} is not valid: {error}") from error

    def name(case_id: str) -> str:
        found = compiled.match(case_id)
        return case_id if found is None else str(found.group(1 if compiled.groups else 0))

    return name
