"""A measure and a selector of one's own, outside the package; conf/strategy composes them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from alseg.strategies.selectors.candidates import Candidates
from alseg.strategies.statistics import VoxelStatistics


def tumour_doubt(statistics: VoxelStatistics, *, class_index: int) -> Tensor:
    """How undecided the passes are about one class: p̄ (1 - p̄) of it, [D, H, W], in [0, 1/4]."""
    probability = statistics.mean[class_index]
    return probability * (1 - probability)


def every_second(candidates: Candidates, query_size: int, rng: np.random.Generator) -> list[str]:
    """Ranks 1, 3, 5, ... by score, then 2, 4, 6, ...: neighbours in the ranking are often alike."""
    order = np.argsort(-candidates.require_scores(), kind="stable")
    spread = np.concatenate([order[::2], order[1::2]])
    return [candidates.ids[i] for i in spread[:query_size]]
