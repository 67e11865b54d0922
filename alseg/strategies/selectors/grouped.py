"""Selectors that know which cases belong together (``alseg.core.groups``).

Regions belong to the group of their case.
"""

from __future__ import annotations

import numpy as np

from alseg.core.groups import grouped_by
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
        pattern: of the groups, as ``grouped_by`` takes it.
        rank: a selector that can order all candidates, the first one first.

    Raises:
        ConfigError: if the pattern is no regular expression.
    """
    group = grouped_by(pattern)
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


def fresh_groups(
    candidates: Candidates,
    query_size: int,
    rng: np.random.Generator,
    *,
    pattern: str | None,
    then: Selector,
) -> list[str]:
    """Let another selector choose among one candidate of each group without a labelled case.

    The candidate of a group is drawn. Once no fresh group is left, it chooses among all others,
    with those chosen before as labelled ones. For selectors that see a query as a whole, such as
    ``typiclust``; without groups, and without labelled cases among the candidates, it is ``then``.

    Args:
        candidates: the unlabelled cases, with what ``then`` looks at.
        query_size: how many to choose.
        rng: draws the candidate of a group, and is handed on.
        pattern: of the groups, as ``grouped_by`` takes it.
        then: chooses.

    Raises:
        ConfigError: if the pattern is no regular expression.
    """
    group = grouped_by(pattern)
    covered = {group(case_id) for case_id in candidates.labelled}
    members: dict[str, list[int]] = {}
    for index, case_id in enumerate(candidates.cases or candidates.ids):
        members.setdefault(group(case_id), []).append(index)
    drawn = [
        indices[rng.integers(len(indices))] if len(indices) > 1 else indices[0]
        for name, indices in members.items()
        if name not in covered
    ]
    n_fresh = min(query_size, len(drawn))
    chosen = then(candidates.subset(np.array(drawn)), n_fresh, rng) if n_fresh else []
    if query_size > n_fresh:
        chosen += then(candidates.after(chosen), query_size - n_fresh, rng)
    return chosen
