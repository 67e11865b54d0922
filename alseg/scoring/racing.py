"""Racing: stop sampling volumes that surely do not belong to the query.

The score of a volume after T stochastic passes is what fixed passes would give. After t < T of them
it can be predicted, with an interval; where the interval lies below what the query already has, the
remaining passes would change nothing that matters. After the successive elimination of Even-Dar,
Mannor and Mansour (JMLR 7, 2006).

Volumes race one after another, so nothing of them is kept.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy.special import stdtrit

from alseg.strategies.selectors.candidates import Selector
from alseg.strategies.selectors.ranked import prefilter, top_k
from alseg.strategies.strategy import CaseScore


class Race:
    """Races the volumes of a pool for the k highest scores after T passes.

    With s_t the score after t passes, the pseudo-values x_t = t s_t - (t-1) s_{t-1} have the mean
    s_t; those from the second on have no bias of order 1/t (for the variance they are Welford's
    increments, and x_1 = 0). With m the mean of x_2 ... x_t, the final score is predicted as::

        (s_1 + (T-1) m) / T

    It would be exact with the mean M of x_2 ... x_T in m's place. If the x have the mean mu and the
    standard deviation c mu, then m - M has the standard deviation

        c mu sqrt((T-t) / ((t-1) (T-1)))

    which falls to 0 at t = T. The relative spread c is pooled over all volumes so far, or a
    volume's own where that is larger, and the quantile is Student's.

    A volume is stopped when the upper limit of its prediction lies below the k-th best of the
    scores that are final. Those are exact, so a volume of the true query is lost only if one of its
    own T-2 intervals fails, which have the level 1 - error_rate / (k (T-2)). By the union bound
    that happens with a probability of at most ``error_rate`` an acquisition. Which volumes have the
    highest M says nothing about m - M, so the pool's size does not matter. The premises: the x are
    normal and independent, and volumes share c as far as their own is not larger.

    Args:
        n_top: k, how many of the highest scores have to be right.
        n_passes: T.
        error_rate: in (0, 1).
    """

    def __init__(self, n_top: int, n_passes: int, error_rate: float) -> None:
        self.n_top = n_top
        self.n_passes = n_passes
        self.error_rate = error_rate
        self._best: list[float] = []  # a heap of the k highest final scores
        self._squares = 0.0  # of relative deviations of the x, over all volumes
        self._freedom = 0

    def is_decided(self, so_far: CaseScore) -> bool:
        """Whether a volume with these passes needs no more of them."""
        scores = so_far.pass_scores or ()
        if len(scores) >= self.n_passes:
            return True
        return len(self._best) == self.n_top and self._upper_limit(scores) < self._best[0]

    def result(self, so_far: CaseScore) -> float:
        """The score after all passes, or what is predicted for it."""
        scores = so_far.pass_scores or ()
        if len(scores) >= self.n_passes:
            return scores[-1]
        return self._final(scores, float(pseudo_values(scores).mean()))

    def observe(self, scored: CaseScore) -> None:
        """Take in what a volume has shown, such as one from before an interruption."""
        assert scored.score is not None
        assert scored.pass_scores is not None
        values = pseudo_values(scored.pass_scores)
        if len(values) > 1 and values.mean():
            self._squares += float(np.square(values / values.mean() - 1).sum())
            self._freedom += len(values) - 1
        if scored.n_passes == self.n_passes:
            heapq.heappush(self._best, scored.score)
            if len(self._best) > self.n_top:
                heapq.heappop(self._best)

    def _final(self, scores: Sequence[float], mean: float) -> float:
        """The final score, if x_2 ... x_T have this mean."""
        return (scores[0] + (self.n_passes - 1) * mean) / self.n_passes

    def _upper_limit(self, scores: Sequence[float]) -> float:
        n_taken = len(scores)
        if n_taken < 2 or not self._freedom:
            return math.inf
        values = pseudo_values(scores)
        mean = float(values.mean())
        spread = math.sqrt(self._squares / self._freedom)
        if len(values) > 2 and mean:
            spread = max(spread, float(values.std(ddof=1)) / abs(mean))
        left = (self.n_passes - n_taken) / ((n_taken - 1) * (self.n_passes - 1))
        quantile = _quantile(self._freedom, self.error_rate / (self.n_top * (self.n_passes - 2)))
        margin = quantile * spread * math.sqrt(left)
        if margin >= 1:  # mu may be any number of times m
            return math.inf
        return self._final(scores, mean + abs(mean) * margin / (1 - margin))


def _quantile(freedom: int, level: float) -> float:
    """The upper quantile of Student's distribution."""
    return -float(stdtrit(freedom, level))


def pseudo_values(scores: Sequence[float]) -> np.ndarray:
    """x_2, ..., x_t of the scores s_1, ..., s_t after 1, ..., t passes."""
    sums = np.arange(1, len(scores) + 1) * np.asarray(scores, dtype=np.float64)
    return np.diff(sums)


def n_top_needed(selector: Selector, query_size: int) -> int | None:
    """How many of the highest scores a selector looks at; None if it needs every score.

    It knows ``top_k`` and ``prefilter``; of a selector from elsewhere it assumes the latter.
    """
    if selector is top_k:
        return query_size
    if isinstance(selector, partial):
        if selector.func is prefilter:
            return max(query_size, round(selector.keywords["multiple"] * query_size))
        return n_top_needed(selector.func, query_size)
    return None
