"""As many sampled passes as the ranking of the volumes needs.

Scores that differ from each other more than by what masks and samples make of them rank volumes
rightly; more passes would change nothing that matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from alseg.scoring.racing import pseudo_values
from alseg.strategies.strategy import CaseScore

# A standard error of a sixth of the spread between volumes leaves 1 - 1/36 = 97% of the scores'
# variance to the volumes.
LARGEST_ERROR = 1 / 6
# The first volumes show how passes and volumes differ.
FIRST_VOLUMES = 5
FIRST_PASSES = 3
POOLED_WEIGHT = 5  # degrees of freedom that the other volumes' passes count beside a volume's own


class Precision:
    """Ends a volume's passes when its score is precise against the differences between volumes.

    For scores that are means of independent passes x_1, x_2, ..., such as those behind a gate. With
    c the relative spread of a volume's passes (its own and that of the volumes so far, weighted)
    and b the standard deviation of the log scores of the volumes so far, passes end after t of them
    when c / sqrt(t) < ``LARGEST_ERROR`` b; for the first volumes, after a fixed number.

    Args:
        n_passes: T, the most.
    """

    def __init__(self, n_passes: int) -> None:
        self.n_passes = n_passes
        self._scores: list[float] = []
        self._squares = 0.0  # of relative deviations of the x, over all volumes
        self._freedom = 0

    def is_decided(self, scores: Sequence[float]) -> bool:
        """Whether a volume with these scores after 1, 2, ... passes needs no more of them."""
        if len(scores) >= self.n_passes:
            return True
        if len(self._scores) < FIRST_VOLUMES:
            return len(scores) >= FIRST_PASSES
        return self._standard_error(scores) < LARGEST_ERROR * self._between()

    def result(self, scores: Sequence[float]) -> float:
        """The mean of the passes."""
        return scores[-1]

    def observe(self, scored: CaseScore) -> None:
        """Take in what a volume has shown, such as one from before an interruption."""
        assert scored.score is not None
        assert scored.pass_scores is not None
        self._scores.append(scored.score)
        squares, freedom = _spread(scored.pass_scores)
        self._squares += squares
        self._freedom += freedom

    def _standard_error(self, scores: Sequence[float]) -> float:
        """Of the score after these passes, relative to it."""
        squares, freedom = _spread(scores)
        pooled = self._squares / self._freedom if self._freedom else 0.0
        variance = (POOLED_WEIGHT * pooled + squares) / (POOLED_WEIGHT + freedom)
        return math.sqrt(variance / len(scores))

    def _between(self) -> float:
        """The standard deviation of the log scores."""
        positive = [math.log(score) for score in self._scores if score > 0]
        return float(np.std(positive, ddof=1)) if len(positive) > 1 else 0.0


def _spread(scores: Sequence[float]) -> tuple[float, int]:
    """The sum of squares of the passes' relative deviations, and its degrees of freedom."""
    passes = np.array([scores[0], *pseudo_values(scores)])
    mean = passes.mean()
    return (float(np.square(passes / mean - 1).sum()) if mean else 0.0), len(passes) - 1
