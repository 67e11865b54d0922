"""Selectors that draw: at random, or the highest of perturbed scores, without replacement."""

from __future__ import annotations

import numpy as np

from alseg.strategies.selectors.candidates import Candidates, Schedule
from alseg.strategies.selectors.ranked import highest


def random(candidates: Candidates, query_size: int, rng: np.random.Generator) -> list[str]:
    """Cases drawn uniformly without replacement: the baseline that a strategy has to beat."""
    order = rng.permutation(len(candidates.ids))
    return [candidates.ids[i] for i in order[:query_size]]


# Noisy rankings: top-k of perturbed scores, which is a draw without replacement.


def geometric(progress: float, *, start: float = 1.0, end: float = 100.0) -> float:
    """A schedule from ``start`` at the first acquisition to ``end`` at the last, by equal factors.

    With 1 and 100: beta = 100^(t / (T_rounds - 1)), nearly random at first, nearly top-k in the
    end. Source: ClaSP PE, the follow-up of nnActive (Lüth et al.).
    """
    return start * (end / start) ** progress


def power(
    candidates: Candidates,
    query_size: int,
    rng: np.random.Generator,
    *,
    beta: float | Schedule = 1.0,
) -> list[str]:
    """Power acquisition: top-k of log s + Gumbel(0, 1/beta), a draw with probability ~ s^beta.

    A score of 0 (or below) has no logarithm: such cases come after all with a positive score, in
    random order.

    Source: Kirsch et al., "Stochastic batch acquisition: a simple baseline for deep active
    learning" (2021), table 1, PowerBALD.

    Args:
        candidates: the unlabelled cases.
        query_size: how many to choose.
        rng: draws the noise.
        beta: coldness > 0, or a schedule over the acquisitions; 0 would be ``random``, infinity
            ``top_k``.
    """
    scores = candidates.require_scores()
    coldness = _positive("beta", beta(candidates.progress) if callable(beta) else beta)
    noise = rng.gumbel(size=len(scores))
    positive = scores > 0
    # Times beta instead of noise over beta: the same order.
    keys = coldness * np.log(np.where(positive, scores, 1.0)) + noise
    order = np.lexsort((-keys, ~positive))  # positive scores first, then by falling key
    return [candidates.ids[i] for i in order[:query_size]]


def softrank(
    candidates: Candidates, query_size: int, rng: np.random.Generator, *, beta: float = 1.0
) -> list[str]:
    """Top-k of -log rank + Gumbel(0, 1/beta): probability ~ rank^-beta, whatever the scores' scale.

    Rank 1 is the highest score; equal scores share the mean of their ranks, so no id is preferred.

    Source: Kirsch et al. (2021), table 1, SoftrankBALD.
    """
    scores = candidates.require_scores()
    keys = -_positive("beta", beta) * np.log(_ranks(scores)) + rng.gumbel(size=len(scores))
    return highest(candidates, keys, query_size)


def gibbs(
    candidates: Candidates, query_size: int, rng: np.random.Generator, *, temperature: float
) -> list[str]:
    """Draws without replacement with probability softmax(s / temperature), by Gumbel top-k.

    The temperature has the unit of the scores: one that suits a mean entropy does not suit a sum.

    Source: Kirsch et al. (2021), table 1, SoftmaxBALD.
    """
    scores = candidates.require_scores()
    keys = scores / _positive("temperature", temperature) + rng.gumbel(size=len(scores))
    return highest(candidates, keys, query_size)


def stochastic_batch(
    candidates: Candidates, query_size: int, rng: np.random.Generator
) -> list[str]:
    """Shuffle the candidates into groups of the query size, take the group of highest mean score.

    What is left over after the last full group is left out of this query. The order within the
    group is that of the scores. Bias: between random (one group) and top-k; the groups are as
    diverse as the pool.

    Source: Gaillochet, Desrosiers, Lombaert, "Active learning for medical image segmentation with
    stochastic batches" (Medical Image Analysis, 2023).
    """
    scores = candidates.require_scores()
    n_groups = len(scores) // query_size
    groups = rng.permutation(len(scores))[: n_groups * query_size].reshape(n_groups, query_size)
    best = groups[np.argmax(scores[groups].mean(axis=1))]
    best = np.sort(best)
    order = best[np.argsort(-scores[best], kind="stable")]
    return [candidates.ids[i] for i in order]


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks from 1 for the highest score; equal scores share their mean rank."""
    _, group, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]


def _positive(name: str, value: float) -> float:
    if not 0 < value < np.inf:
        raise ValueError(f"{name} is {value}; it must be a positive number")
    return value
