"""Noisy scores of few passes, drawn towards what the deterministic pass expects of a volume.

The scores of a pool and the variances that deterministic passes expect have nearly one ratio. Where
passes say less of a volume than that does, its score leans on the ratio of the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from alseg.scoring.racing import pseudo_values
from alseg.strategies.strategy import CaseScore

POOLED_WEIGHT = 5  # degrees of freedom that the other volumes' passes count beside a volume's own
SPREADS = np.geomspace(0.005, 1.5, 40)  # of ratios between volumes, in logarithms


class Evidence(NamedTuple):
    """What is known of a volume.

    Attributes:
        log_expected: the logarithm of what the deterministic pass expects of the score.
        log_score: of the mean of the passes.
        n_passes: how many there were.
        squares: the sum of squares of the passes' relative deviations from their mean.
    """

    log_expected: float
    log_score: float
    n_passes: int
    squares: float


class ShrunkScores:
    """Log scores of volumes given their passes and each other's, for at least two volumes.

    The small-area model of Fay and Herriot (JASA 74, 1979) on logarithms: with h what is expected
    of a volume, its score after t passes has the logarithm ::

        y = h + m + u + e,   u ~ N(0, tau²),   e ~ N(0, c² / t)

    c is the relative spread of its passes, its own and the pool's weighted. The ratio m and the
    spread tau are the pool's and not known: m has a flat prior, tau a flat one over ``SPREADS``
    (Gelman, Bayesian Analysis 1, 2006), so that five volumes do not pass for alike. Means of passes
    have no bias; a shrunk score has one towards the ratio of the others, c² / (c² + t tau²) of its
    distance from it.

    Args:
        evidence: of the volumes, see ``evidence_of``.

    Attributes:
        log_scores: posterior means, [n].
        variances: of the posterior, [n].
    """

    def __init__(self, evidence: Sequence[Evidence]) -> None:
        log_expected, log_score, n_passes, squares = np.array(evidence).T
        freedom = n_passes - 1
        pooled = squares.sum() / max(freedom.sum(), 1)
        error = (POOLED_WEIGHT * pooled + squares) / (POOLED_WEIGHT + freedom) / n_passes
        ratio = log_score + error / 2 - log_expected  # the logarithm of a noisy mean is too small
        precision = 1 / (SPREADS[:, None] ** 2 + error)  # [spreads, n]
        variance_of_m = 1 / precision.sum(axis=1, keepdims=True)
        m = (precision * ratio).sum(axis=1, keepdims=True) * variance_of_m
        likelihood = (np.log(precision) - precision * (ratio - m) ** 2).sum(axis=1)
        likelihood += np.log(variance_of_m[:, 0])
        # where spreads are small the grid is finer
        weight = softmax(likelihood / 2 + np.log(SPREADS))
        own = SPREADS[:, None] ** 2 * precision
        given_spread = own * ratio + (1 - own) * m
        spread_out = own * error + (1 - own) ** 2 * variance_of_m
        mean = weight @ given_spread
        self.variances = weight @ (spread_out + (given_spread - mean) ** 2)
        self.log_scores = log_expected + mean


def settled(scores: Sequence[CaseScore]) -> list[CaseScore]:
    """The scores of a whole pool, each with the others in mind; those of fixed passes as they are.

    The order of the scores changes nothing, and neither does which process has made which.
    """
    known = {s.name: evidence for s in scores if (evidence := evidence_of(s)) is not None}
    if len(known) < 2:
        return list(scores)
    names = sorted(known)
    found = ShrunkScores([known[name] for name in names])
    final = dict(zip(names, np.exp(found.log_scores).tolist(), strict=True))
    return [replace(s, score=final[s.name]) if s.name in final else s for s in scores]


def evidence_of(score: CaseScore) -> Evidence | None:
    """What a score that was made pass by pass says; None without an expectation, or if it is 0."""
    if not (score.expected and score.pass_scores and score.pass_scores[-1]):
        return None
    passes = np.array([score.pass_scores[0], *pseudo_values(score.pass_scores)])
    return Evidence(
        log_expected=math.log(score.expected),
        log_score=math.log(score.pass_scores[-1]),
        n_passes=len(passes),
        squares=float(np.square(passes / passes.mean() - 1).sum()),
    )
