"""A strategy composes a measure, an aggregation and a selector."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from alseg.errors import ScoringError
from alseg.strategies.selectors import Candidates
from alseg.strategies.statistics import VoxelStatistics

Measure = Callable[[VoxelStatistics], Tensor]
Aggregation = Callable[[Tensor, VoxelStatistics], float]
Selector = Callable[[Candidates, int, np.random.Generator], list[str]]


@dataclass(frozen=True)
class CaseScore:
    """The acquisition score of one case; higher means acquire first."""

    case_id: str
    score: float


@dataclass(frozen=True)
class Strategy:
    """An acquisition strategy.

    Attributes:
        name: how tables, plots and the tracking store call it.
        selector: from candidates to a query.
        measure: from statistics to a voxel map; None for a strategy that looks at no prediction.
        aggregation: from a voxel map to a score; needed if there is a measure.
        full_data: label the whole pool before the first round, the upper reference.
        reads_labels: whether it sees hidden labels, which no honest strategy does; shown wherever
            the strategy is reported.
    """

    name: str
    selector: Selector
    measure: Measure | None = None
    aggregation: Aggregation | None = None
    full_data: bool = False
    reads_labels: bool = False

    def __post_init__(self) -> None:
        if (self.measure is None) != (self.aggregation is None):
            raise ValueError(f"strategy {self.name}: measure and aggregation come together or not")

    @property
    def needs_scores(self) -> bool:
        """Whether the pool has to be scored before a selection."""
        return self.measure is not None

    def uncertainty_map(self, statistics: VoxelStatistics) -> Tensor:
        """The voxel map [D, H, W] of a strategy that needs scores."""
        if self.measure is None:
            raise ValueError(f"strategy {self.name} has no measure")
        return self.measure(statistics)

    def score(self, case_id: str, statistics: VoxelStatistics) -> CaseScore:
        """Score one case from the statistics of its passes.

        Raises:
            ScoringError: if the score is not finite.
        """
        if self.aggregation is None:
            raise ValueError(f"strategy {self.name} has no aggregation")
        score = float(self.aggregation(self.uncertainty_map(statistics), statistics))
        if not math.isfinite(score):
            raise ScoringError(f"strategy {self.name} gave {case_id} the score {score}")
        return CaseScore(case_id, score)

    def select(
        self, candidates: Candidates, query_size: int, rng: np.random.Generator
    ) -> list[str]:
        """Choose the query: at most ``query_size`` distinct candidates, in order of acquisition.

        Raises:
            ScoringError: if the selector returns anything else.
        """
        expected = min(query_size, len(candidates.ids))
        chosen = self.selector(candidates, expected, rng)
        if len(set(chosen)) != expected or not set(chosen) <= set(candidates.ids):
            raise ScoringError(
                f"strategy {self.name} must select {expected} distinct candidates, got {chosen}"
            )
        return chosen


def candidates_from(scores: Iterable[CaseScore]) -> Candidates:
    """Sort scored cases by id into candidates."""
    ordered = sorted(scores, key=lambda s: s.case_id)
    return Candidates(
        ids=tuple(s.case_id for s in ordered),
        scores=np.array([s.score for s in ordered], dtype=np.float64),
    )
