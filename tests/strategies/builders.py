"""Builders of statistics and candidates, small enough to compute by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from alseg.strategies.selectors.candidates import Candidates
from alseg.strategies.statistics import VoxelStatistics


def statistics_of(passes: Sequence[Tensor], hidden_label: Tensor | None = None) -> VoxelStatistics:
    """The statistics of passes, each [C, D, H, W]."""
    statistics = VoxelStatistics()
    if hidden_label is not None:
        statistics.attach_hidden_label(hidden_label)
    for probabilities in passes:
        statistics.update(probabilities)
    return statistics


def case_ids(n: int) -> tuple[str, ...]:
    """n sorted case ids."""
    return tuple(f"case_{i:03d}" for i in range(n))


def candidates_of(scores: Any = None, **fields: Any) -> Candidates:
    """Candidates from plain lists of scores, class_scores, features, labelled_features."""
    arrays = {
        name: np.asarray(value, dtype=np.float64) if isinstance(value, list) else value
        for name, value in ({"scores": scores} | fields).items()
    }
    n = next(
        len(arrays[name])
        for name in ("scores", "features", "class_scores")
        if arrays.get(name) is not None
    )
    return Candidates(ids=case_ids(n), **arrays)


def indices_of(ids: Sequence[str]) -> list[int]:
    """The positions of chosen ids among ``case_ids``."""
    return [int(case_id.removeprefix("case_")) for case_id in ids]
