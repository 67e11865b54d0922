"""Selectors that give each class its share."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from alseg.strategies.selectors.candidates import Candidates, Selector
from alseg.strategies.selectors.ranked import top_k


def class_stratified(
    candidates: Candidates,
    query_size: int,
    rng: np.random.Generator,
    *,
    fraction: float = 0.66,
    rank: Selector = top_k,
) -> list[str]:
    """Share a fraction of the query equally between the foreground classes.

    round(fraction k) cases are taken in turn for each class, the next one in that class's own
    ranking that has not been taken; the rest follows the plain score. The order of the classes is
    drawn, so that the odd places do not always go to the same one. A class whose score is 0 in all
    candidates has no ranking and takes no turn.

    Source: ClaSP PE, the follow-up of nnActive (Lüth et al.), with ``rank=power``.

    Args:
        candidates: with ``class_scores`` [n, C - 1] and scores.
        query_size: how many to choose.
        rng: draws the order of the classes and what ``rank`` draws.
        fraction: in [0, 1].
        rank: a selector by score, which makes each ranking.
    """
    n_candidates = len(candidates.ids)
    by_class = candidates.require_class_scores()
    ranked = [
        rank(replace(candidates, scores=by_class[:, c]), n_candidates, rng)
        for c in rng.permutation(by_class.shape[1])
        if by_class[:, c].max() > 0
    ]
    return _in_turns(
        ranked, rank(candidates, n_candidates, rng), query_size, _share(fraction, query_size)
    )


def class_balanced_random(
    candidates: Candidates, query_size: int, rng: np.random.Generator, *, fraction: float = 0.66
) -> list[str]:
    """Draw a fraction of the query among the cases that hold a class, each class in turn.

    As ``class_stratified``, but each class's ranking is a random order of the cases with a positive
    class score, and the rest of the query is drawn from all cases. With the true voxel counts as
    class scores it is nnActive's foreground-aware random baseline, for whole volumes instead of
    patches: there a share of 0.66 of the patches is drawn from those that hold a class that is
    drawn first, here the same share of the volumes.

    Source: nnActive (Lüth et al., 2025), the baseline "random 66% foreground".
    """
    by_class = candidates.require_class_scores()

    def shuffled(indices: np.ndarray) -> list[str]:
        return [candidates.ids[i] for i in rng.permutation(indices)]

    ranked = [
        shuffled(np.flatnonzero(by_class[:, c] > 0)) for c in rng.permutation(by_class.shape[1])
    ]
    rest = shuffled(np.arange(len(candidates.ids)))
    return _in_turns(ranked, rest, query_size, _share(fraction, query_size))


def rare_classes_first(
    candidates: Candidates,
    query_size: int,
    rng: np.random.Generator,
    *,
    share: float = 0.5,
    rank: Selector = top_k,
    rest: Selector,
) -> list[str]:
    """Part of the query looks for classes that few labelled cases hold, as long as there are any.

    A class is rare while fewer than a ``share`` of the labelled cases hold it. As many places go to
    ``rank`` as it takes until that share of all labelled cases holds the rarest class, if each of
    these places holds it; the other places, all of them where no class is rare, go to ``rest``, to
    which the first ones count as labelled. Which classes the labelled cases hold is said by their
    revealed labels, not predicted. Each region of a query is taken for one more labelled case.

    Bias: what is uncertain, while a class is rare; a class that no image holds stays rare for ever.
    Cost: none but that of ``rank`` and ``rest``; the revealed labels are read once a round.
    Source: ours, after class-balanced active learning, Bengar et al., "Class-balanced active
    learning for image classification" (WACV 2022), which chooses by predicted classes: on phantoms
    those of a class that the network had hardly seen found it no better than chance, uncertainty
    somewhat better (docs/strategies.md).

    Args:
        candidates: the unlabelled cases, with what ``rank`` and ``rest`` look at.
        query_size: how many to choose.
        rng: handed on.
        share: of the labelled cases that are to hold each class, in [0, 1].
        rank: chooses what may hold a rare class.
        rest: chooses the others.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must lie in [0, 1]")
    n_rare = _places_for_rare(candidates.require_labelled_classes(), query_size, share)
    chosen = rank(candidates, n_rare, rng) if n_rare else []
    if query_size > n_rare:
        chosen += rest(candidates.after(chosen), query_size - n_rare, rng)
    return chosen


def _places_for_rare(held: np.ndarray, query_size: int, share: float) -> int:
    """How many places of a query the rarest class needs, by the classes that labelled cases hold.

    Where nothing is labelled, no case holds any class, and all are rare.
    """
    n_labelled = len(held)
    n_rarest = int(held.sum(axis=0).min()) if held.size else 0
    if n_labelled and n_rarest >= share * n_labelled:
        return 0
    return min(math.ceil(share * (n_labelled + query_size) - 1e-9) - n_rarest, query_size)


def _share(fraction: float, query_size: int) -> int:
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; it must lie in [0, 1]")
    return round(fraction * query_size)


def _in_turns(
    rankings: list[list[str]], rest: list[str], query_size: int, n_in_turns: int
) -> list[str]:
    """Take ``n_in_turns`` ids from the rankings in turn, then fill up from ``rest``."""
    chosen: dict[str, None] = {}  # an ordered set
    waiting = [iter(ranking) for ranking in rankings]
    while waiting and len(chosen) < n_in_turns:
        ranking = waiting.pop(0)
        fresh = next((case_id for case_id in ranking if case_id not in chosen), None)
        if fresh is not None:
            chosen[fresh] = None
            waiting.append(ranking)
    for case_id in rest:
        if len(chosen) == query_size:
            break
        chosen[case_id] = None
    return list(chosen)
