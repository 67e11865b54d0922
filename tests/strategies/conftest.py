"""Statistics of prescribed predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from alseg.strategies.statistics import VoxelStatistics
from tests.strategies.builders import statistics_of

Passes = Sequence[Sequence[float]]


@pytest.fixture
def one_voxel() -> Callable[[Passes], VoxelStatistics]:
    """A volume of one voxel; each pass is its list of class probabilities."""
    return lambda passes: statistics_of([torch.tensor(p).reshape(-1, 1, 1, 1) for p in passes])


@pytest.fixture
def two_class() -> Callable[[Tensor], VoxelStatistics]:
    """One pass of a two-class volume with the given foreground probability [D, H, W]."""
    return lambda foreground: statistics_of([torch.stack([1 - foreground, foreground])])
