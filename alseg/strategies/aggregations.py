"""Aggregations: from a map of voxel uncertainty to the score of a volume.

An aggregation takes the map [D, H, W] and the statistics it was computed from, and returns a
number; higher means *acquire first*. A new one is one function here and one YAML under
conf/strategy.
"""

from __future__ import annotations

from torch import Tensor

from alseg.strategies.statistics import VoxelStatistics


def mean(uncertainty: Tensor, statistics: VoxelStatistics) -> float:
    """Mean over all voxels of the volume.

    Bias: most voxels of a CT are confident background, so the score grows with the *share* of the
    field of view that the organ fills: tightly cropped scans and large organs come first.
    """
    # In float64: the float32 sum of a CT's ten million voxels loses the digits that rank volumes.
    return float(uncertainty.double().mean())
