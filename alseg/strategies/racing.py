"""Racing: stop sampling volumes that surely do not belong to the query.

The score of a volume after T stochastic passes is what fixed passes would give. After t < T of them
it can be predicted, with an interval; where the interval lies below what the query already has, the
remaining passes would change nothing that matters. After the successive elimination of Even-Dar,
Mannor and Mansour (JMLR 7, 2006), with each volume visited once, so that pools larger than memory
stream.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import stdtrit

from alseg.strategies.selectors import Selector, prefilter, top_k


@dataclass(frozen=True)
class Raced:
    """What a race made of one volume.

    Attributes:
        score: after all passes, or predicted for them if the volume was stopped.
        so_far: the scores s_1, s_2, ... after each pass that it took.
    """

    score: float
    so_far: tuple[float, ...]


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
    volume's own where that is larger, and the quantile is Student's. A volume is stopped when the
    upper limit of its prediction lies below the k-th best of the scores that are final.

    Those are exact, so a volume of the true query is lost only if an interval of its own fails:
    with intervals of the level 1 - error_rate / (k looks), T-2 looks a volume, that happens with a
    probability of at most ``error_rate`` an acquisition, as far as the x are normal. Volumes that
    are not of the query cannot spoil it, so the pool's size does not matter. The first k volumes
    take all passes, and so does each that may still be of the query: about k (1 + log(n / k)) of n
    in random order. The order is that in which scores come, the pool's.

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

    def run(self, scores: Iterable[float]) -> Raced:
        """Take one volume's scores s_1, s_2, ... as far as needed.

        Args:
            scores: at most T; taken one by one, so the passes behind them need not be made.
        """
        taken: list[float] = []
        for score in scores:
            taken.append(score)
            if self._is_out(taken):
                break
        self.know(taken)
        is_final = len(taken) == self.n_passes
        return Raced(taken[-1] if is_final else self._prediction(taken), tuple(taken))

    def know(self, scores: Sequence[float]) -> None:
        """Take in what a volume has shown, such as one from before an interruption.

        Args:
            scores: s_1, s_2, ... as far as they were taken.
        """
        self._learn_spread(scores)
        if len(scores) == self.n_passes:
            heapq.heappush(self._best, scores[-1])
            if len(self._best) > self.n_top:
                heapq.heappop(self._best)

    def _prediction(self, scores: Sequence[float]) -> float:
        mean = float(np.mean(pseudo_values(scores)))
        return (scores[0] + (self.n_passes - 1) * mean) / self.n_passes

    def _is_out(self, scores: Sequence[float]) -> bool:
        n_taken = len(scores)
        if not 2 <= n_taken < self.n_passes or len(self._best) < self.n_top or not self._freedom:
            return False
        values = pseudo_values(scores)
        mean = float(values.mean())
        spread = math.sqrt(self._squares / self._freedom)
        if len(values) > 2 and mean:
            spread = max(spread, float(values.std(ddof=1)) / abs(mean))
        level = self.error_rate / (self.n_top * (self.n_passes - 2))
        left = (self.n_passes - n_taken) / ((n_taken - 1) * (self.n_passes - 1))
        margin = -float(stdtrit(self._freedom, level)) * spread * math.sqrt(left)
        if margin >= 1:  # mu may be any number of times m
            return False
        highest = mean + abs(mean) * margin / (1 - margin)
        return (scores[0] + (self.n_passes - 1) * highest) / self.n_passes < self._best[0]

    def _learn_spread(self, scores: Sequence[float]) -> None:
        values = pseudo_values(scores)
        if len(values) > 1 and values.mean():
            self._squares += float(np.square(values / values.mean() - 1).sum())
            self._freedom += len(values) - 1


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
