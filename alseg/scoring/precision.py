"""As many sampled passes as the query needs.

Scores that differ from each other more than by what masks and samples make of them rank volumes
rightly; more passes would change nothing that matters.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr, ndtri

from alseg.scoring.shrinkage import Evidence, ShrunkScores, evidence_of
from alseg.strategies.strategy import CaseScore

# A standard error of a sixth of the spread between volumes leaves 1 - 1/36 = 97% of the scores'
# variance to the volumes.
LARGEST_ERROR = 1 / 6
# The first volumes show how passes and volumes differ; they take passes for the budget.
FIRST_VOLUMES = 5
FIRST_PASSES = 2
# The price of a plain pass, in spreads between volumes, once volumes have taken ``BUDGET`` plain
# passes each. Below that it falls fast, so cheap passes are many, and above it rises.
PRICE = 0.1
BUDGET = 1.9
STEEPNESS = 16


class Precision:
    """Ends a volume's passes when another one is not worth what it costs.

    For scores that are means of independent passes, such as those behind a gate, and shrunk in the
    end (``ShrunkScores``). With b the spread of the log scores of the volumes so far, a volume has
    had enough passes when the standard error of its score is below ``LARGEST_ERROR`` b.

    Where the query takes the highest scores, a volume far from the border needs fewer. The border
    is the normal quantile of the scores so far that leaves the query's share above it. If a score
    has the standard error s and the distance d from the border, taking or leaving the volume costs
    the expected opportunity loss s (phi(d/s) - d/s Phi(-d/s)) (Chick and Inoue, Operations Research
    49, 2001). Passes end when that is less than the price of the next one.

    Args:
        n_passes: T, the most.
        share: of the pool that the query takes, in (0, 1); None where every score matters as much.
    """

    def __init__(self, n_passes: int, share: float | None = None) -> None:
        self.n_passes = n_passes
        self.share = share
        self._seen: list[Evidence] = []
        self._costs: list[float] = []

    def is_decided(self, so_far: CaseScore) -> bool:
        """Whether a volume with these passes, one at least, needs no more of them."""
        assert so_far.n_passes is not None
        assert so_far.plain_passes is not None
        if so_far.n_passes == self.n_passes:
            return True
        if len(self._seen) < FIRST_VOLUMES:
            return so_far.n_passes >= FIRST_PASSES and so_far.plain_passes >= BUDGET
        evidence = evidence_of(so_far)
        if evidence is None:
            return False
        scores = ShrunkScores([*self._seen, evidence])
        others = scores.log_scores[:-1]
        between = math.sqrt(others.var(ddof=1) + scores.variances[:-1].mean())
        if scores.variances[-1] < (LARGEST_ERROR * between) ** 2:
            return True
        return self.share is not None and self._loss(scores) < self._price(so_far) * between

    def result(self, so_far: CaseScore) -> float:
        """The mean of the passes; ``settled`` shrinks it when all volumes have been seen."""
        assert so_far.score is not None
        return so_far.score

    def observe(self, scored: CaseScore) -> None:
        """Take in what a volume has shown, such as one from before an interruption."""
        if evidence := evidence_of(scored):
            self._seen.append(evidence)
        self._costs.append(scored.plain_passes or 0.0)

    def _loss(self, scores: ShrunkScores) -> float:
        """What is lost if the last volume is taken or left by its score as it is."""
        assert self.share is not None
        others, quantile = scores.log_scores[:-1], float(ndtri(1 - self.share))
        spread = others.std(ddof=1)
        border = others.mean() + quantile * spread
        of_border = spread**2 * (1 + quantile**2 / 2) / len(others)
        error = math.sqrt(scores.variances[-1] + of_border)
        if not error:
            return 0.0
        far = abs(scores.log_scores[-1] - border) / error
        density = math.exp(-(far**2) / 2) / math.sqrt(2 * math.pi)
        return float(error * (density - far * ndtr(-far)))

    def _price(self, so_far: CaseScore) -> float:
        """Of the next pass."""
        assert so_far.n_passes is not None
        assert so_far.plain_passes is not None
        each = (so_far.plain_passes - 1) / so_far.n_passes  # without the deterministic one
        return PRICE * each * float(np.mean(self._costs) / BUDGET) ** STEEPNESS


def share_of_pool(n_top: int | None, n_candidates: int) -> float | None:
    """What the query takes of a pool, below 1 even if that is all; None if it needs every score."""
    if n_top is None:
        return None
    n_candidates = max(n_candidates, 1)
    return min(n_top, n_candidates - 0.5) / n_candidates
