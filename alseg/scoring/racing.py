"""Racing: stop sampling volumes that surely do not belong to the query.

The score of a volume after T stochastic passes is what fixed passes would give. After t < T of them
it can be predicted, with an interval; where the interval lies below what the query already has, the
remaining passes would change nothing that matters. After the successive elimination of Even-Dar,
Mannor and Mansour (JMLR 7, 2006).

Volumes race in heats, as many at a time as fit into memory, so pools larger than memory stream.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from scipy.special import stdtrit

from alseg.strategies.selectors.candidates import Selector
from alseg.strategies.selectors.ranked import prefilter, top_k
from alseg.strategies.strategy import CaseScore

FEWEST_PAIRS = 5  # (hint, score) of volumes before a hint by itself can stop one
# What the volumes of a heat may keep between their passes, 2 GiB (18 volumes of 3 million voxels),
# and how many they may be: an interruption loses a heat.
HEAT_BYTES = 2 * 1024**3
HEAT_SIZE = 32


@dataclass
class Contender:
    """A volume in a race.

    Attributes:
        case_id: the volume.
        scores: its score after 1, 2, ... passes; a pass is made when its score is taken.
        hint: a positive number that foretells the score at no pass's cost, if there is one: the
            score of the deterministic prediction.
        so_far: the scores s_1, s_2, ... that have been taken.
        cost: of a number of passes, in plain ones.
    """

    case_id: str
    scores: Iterator[float]
    hint: float | None = None
    so_far: list[float] = field(default_factory=list)
    cost: Callable[[int], float] = float


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
    volume's own where that is larger, and the quantile is Student's. Before the first pass, where
    volumes come with a hint, the final score is predicted from it by the regression of log score on
    log hint over the volumes so far, with its prediction interval; it is fitted again whenever the
    volumes have doubled.

    A volume is stopped when the upper limit of its prediction lies below the k-th best of the
    scores that are final. Those are exact, so a volume of the true query is lost only if an
    interval of its own fails. By the union bound that happens with a probability of at most
    ``error_rate`` an acquisition:

    - After passes, each of the k has T-2 intervals, of the level 1 - error_rate / (k (T-2)). Which
      volumes have the highest M says nothing about m - M, so the pool's size does not matter.
    - Before them, the volumes of the query are those with the largest residuals, so each of the
      ``n_volumes`` counts, as often as the regression is fitted.

    With hints each of the two has half of the error rate. The premises: the x and the residuals are
    normal and independent, volumes share c as far as their own is not larger, and the regression is
    a straight line of equal spread.

    In a heat the volume that promises most makes the next pass, so the k best are known early and
    the others are stopped after few passes or none.

    Args:
        n_top: k, how many of the highest scores have to be right.
        n_passes: T.
        error_rate: in (0, 1).
        n_volumes: how many race, all heats together.
    """

    def __init__(self, n_top: int, n_passes: int, error_rate: float, n_volumes: int) -> None:
        self.n_top = n_top
        self.n_passes = n_passes
        self.error_rate = error_rate
        self.n_volumes = n_volumes
        self._best: list[float] = []  # a heap of the k highest final scores
        self._squares = 0.0  # of relative deviations of the x, over all volumes
        self._freedom = 0
        self._pairs: list[tuple[float, float]] = []  # (log hint, log score)
        self._line: _Line | None = None

    def run(self, heat: Sequence[Contender]) -> list[CaseScore]:
        """Race some volumes with each other and with those of earlier heats.

        Returns:
            One score a volume, after all passes or predicted for them, in the order in which they
            were decided.
        """
        live = sorted(heat, key=lambda c: -(c.hint or 0.0))
        limits: dict[str, tuple[tuple[int, int], float]] = {}
        raced: list[CaseScore] = []
        while live:
            stopped = [c for c in live if self._is_out(c, limits)]
            if not stopped:
                ratio = self._score_per_hint(live)
                leader = max(live, key=lambda c: self._promise(c, ratio))
                leader.so_far.append(next(leader.scores))
                stopped = [leader] if len(leader.so_far) == self.n_passes else []
            for contender in stopped:
                live.remove(contender)
                contender.scores = iter(())  # what its passes have kept is free
                raced.append(
                    CaseScore(
                        contender.case_id,
                        self._score(contender),
                        n_passes=len(contender.so_far),
                        pass_scores=tuple(contender.so_far),
                        hint=contender.hint,
                        plain_passes=contender.cost(len(contender.so_far)),
                    )
                )
                self.observe(raced[-1])
        return raced

    def observe(self, raced: CaseScore) -> None:
        """Take in what a volume has shown, such as one from before an interruption."""
        assert raced.score is not None
        assert raced.pass_scores is not None
        values = pseudo_values(raced.pass_scores)
        if len(values) > 1 and values.mean():
            self._squares += float(np.square(values / values.mean() - 1).sum())
            self._freedom += len(values) - 1
        if len(values) and raced.hint and raced.score > 0:
            self._pairs.append((math.log(raced.hint), math.log(raced.score)))
            due = FEWEST_PAIRS if self._line is None else 2 * self._line.n_pairs
            if len(self._pairs) == due:
                self._line = _Line.through(self._pairs)
        if raced.n_passes == self.n_passes:
            heapq.heappush(self._best, raced.score)
            if len(self._best) > self.n_top:
                heapq.heappop(self._best)

    def _score(self, contender: Contender) -> float:
        """Final, or predicted; there are two passes, or a regression."""
        if len(contender.so_far) == self.n_passes:
            return contender.so_far[-1]
        if contender.so_far:
            return self._final(contender, float(pseudo_values(contender.so_far).mean()))
        assert contender.hint is not None
        assert self._line is not None
        return math.exp(self._line.at(contender.hint)[0])

    def _final(self, contender: Contender, mean: float) -> float:
        """The final score, if x_2 ... x_T have this mean."""
        return (contender.so_far[0] + (self.n_passes - 1) * mean) / self.n_passes

    def _promise(self, contender: Contender, ratio: float | None) -> tuple[bool, float]:
        """What to compare live volumes by: the predicted score."""
        if len(contender.so_far) > 1:
            return False, self._score(contender)
        if contender.so_far:
            return True, math.inf  # one pass says nothing yet: continue
        if contender.hint is None or ratio is None:
            return True, contender.hint or 0.0
        return False, contender.hint * ratio

    def _score_per_hint(self, live: Sequence[Contender]) -> float | None:
        """The mean ratio of score and hint; None while no volume has shown it."""
        ratios = [math.exp(score - hint) for hint, score in self._pairs]
        ratios += [self._score(c) / c.hint for c in live if c.hint and len(c.so_far) > 1]
        return float(np.mean(ratios)) if ratios else None

    def _is_out(
        self, contender: Contender, limits: dict[str, tuple[tuple[int, int], float]]
    ) -> bool:
        if len(self._best) < self.n_top:
            return False
        # One limit after each pass, and one for each regression: no more looks than are counted.
        n_pairs = 0 if contender.so_far or self._line is None else self._line.n_pairs
        look = len(contender.so_far), n_pairs
        if limits.get(contender.case_id, (None, 0.0))[0] != look:
            limits[contender.case_id] = look, self._upper_limit(contender)
        return limits[contender.case_id][1] < self._best[0]

    def _upper_limit(self, contender: Contender) -> float:
        n_taken = len(contender.so_far)
        error_rate = self.error_rate if contender.hint is None else self.error_rate / 2
        if n_taken == 0 and contender.hint is not None and self._line is not None:
            predicted, error = self._line.at(contender.hint)
            n_lines = 1 + math.floor(math.log2(max(1.0, self.n_volumes / FEWEST_PAIRS)))
            quantile = _quantile(self._line.freedom, error_rate / (self.n_volumes * n_lines))
            return math.exp(min(700.0, predicted + quantile * error))
        if not 2 <= n_taken < self.n_passes or not self._freedom:
            return math.inf
        values = pseudo_values(contender.so_far)
        mean = float(values.mean())
        spread = math.sqrt(self._squares / self._freedom)
        if len(values) > 2 and mean:
            spread = max(spread, float(values.std(ddof=1)) / abs(mean))
        left = (self.n_passes - n_taken) / ((n_taken - 1) * (self.n_passes - 1))
        quantile = _quantile(self._freedom, error_rate / (self.n_top * (self.n_passes - 2)))
        margin = quantile * spread * math.sqrt(left)
        if margin >= 1:  # mu may be any number of times m
            return math.inf
        return self._final(contender, mean + abs(mean) * margin / (1 - margin))


@dataclass(frozen=True)
class _Line:
    """Least squares of log score on log hint."""

    n_pairs: int
    hint: float  # mean of the log hints
    score: float  # mean of the log scores
    slope: float
    sum_of_squares: float  # of the log hints
    spread: float  # residual standard deviation

    @classmethod
    def through(cls, pairs: Sequence[tuple[float, float]]) -> _Line:
        hints, scores = np.array(pairs).T
        offsets = hints - hints.mean()
        sum_of_squares = float(np.square(offsets).sum())
        slope = float((offsets * scores).sum()) / sum_of_squares if sum_of_squares else 0.0
        residuals = scores - scores.mean() - slope * offsets
        spread = math.sqrt(float(np.square(residuals).sum()) / (len(pairs) - 2))
        return cls(
            len(pairs), float(hints.mean()), float(scores.mean()), slope, sum_of_squares, spread
        )

    @property
    def freedom(self) -> int:
        return self.n_pairs - 2

    def at(self, hint: float) -> tuple[float, float]:
        """The predicted log score at a hint, and the standard error of the prediction."""
        if self.sum_of_squares == 0:  # all hints were equal
            return self.score, math.inf
        offset = math.log(hint) - self.hint
        error = self.spread * math.sqrt(1 + 1 / self.n_pairs + offset**2 / self.sum_of_squares)
        return self.score + self.slope * offset, error


def _quantile(freedom: int, level: float) -> float:
    """The upper quantile of Student's distribution."""
    return -float(stdtrit(freedom, level))


class Heats:
    """Gathers volumes into heats and lets them race.

    Args:
        race: of all heats.
        limit: bytes that the volumes of a heat may keep; a heat starts when they are reached, or
            HEAT_SIZE volumes have come. None for HEAT_BYTES.
    """

    def __init__(self, race: Race, limit: int | None = None) -> None:
        self.race = race
        self.limit = HEAT_BYTES if limit is None else limit
        self._heat: list[Contender] = []
        self._bytes = 0

    def enter(self, contender: Contender, n_bytes: int, *, is_last: bool) -> list[CaseScore]:
        """Add a volume.

        Args:
            contender: the volume.
            n_bytes: what it keeps between its passes.
            is_last: whether no other follows.

        Returns:
            The scores of its heat if that has been run, or none yet.
        """
        self._heat.append(contender)
        self._bytes += n_bytes
        if self._bytes < self.limit and len(self._heat) < HEAT_SIZE and not is_last:
            return []
        heat, self._heat, self._bytes = self._heat, [], 0
        return self.race.run(heat)


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
