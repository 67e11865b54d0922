"""Aggregations: from a map of voxel uncertainty to the score of a volume.

An aggregation takes the map [D, H, W] and the statistics it was computed from, and returns a
number; higher means *acquire first*. Sums run in float64: the float32 sum of a CT's ten million
voxels loses the digits that rank volumes. A new one is one function here and one YAML under
conf/strategy; keyword arguments are set in YAML beside ``_partial_: true``.

One rule for volumes without predicted foreground (or without a boundary): the whole volume stands
in for it. So the score stays finite and keeps its unit; a volume in which the network confidently
finds nothing comes late, one in which it is unsure everywhere still comes early. Rejected: a score
of 0, which would hide volumes whose organ was missed altogether; and infinity, which would spend
whole queries on truly empty scans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812  (torch's own idiom)
from torch import Tensor

from alseg.strategies.statistics import VoxelStatistics


def mean(uncertainty: Tensor, statistics: VoxelStatistics) -> float:
    """Mean over all voxels of the volume.

    Bias: most voxels of a CT are confident background, so the score grows with the *share* of the
    field of view that the organ fills: tightly cropped scans and large organs come first.
    """
    return float(uncertainty.double().mean())


def sum(uncertainty: Tensor, statistics: VoxelStatistics) -> float:
    """Sum over all voxels.

    Bias: large organs in large scans. It is the right score where the annotation costs the same
    for every volume and every voxel's information counts the same.
    """
    return float(uncertainty.double().sum())


def foreground_mean(
    uncertainty: Tensor, statistics: VoxelStatistics, *, dilation_voxels: int = 2
) -> float:
    """Mean over the predicted foreground (argmax p̄ > 0), dilated by a cube of some voxels.

    Bias: the share of foreground plays no part; thin and small predictions, which are mostly
    surface, come first. It does not see structures that are missed altogether.

    Args:
        uncertainty: the map [D, H, W].
        statistics: what the map was computed from.
        dilation_voxels: r >= 0; the mask grows by r voxels along each axis, to take in the outside
            of the surface.
    """
    foreground = (statistics.prediction > 0).float()
    return _mean_within(uncertainty, _maximum_around(foreground, dilation_voxels) > 0)


def boundary_mean(
    uncertainty: Tensor, statistics: VoxelStatistics, *, width_voxels: int = 1
) -> float:
    """Mean over the voxels within some voxels of another predicted class.

    Bias: how sharp surfaces are, whatever the organ's size; blind to the inside, where whole
    structures are missed or invented.

    Args:
        uncertainty: the map [D, H, W].
        statistics: what the map was computed from.
        width_voxels: w >= 1; a voxel counts if the cube of 2w + 1 voxels around it holds two
            classes.
    """
    classes = statistics.prediction.float()
    highest = _maximum_around(classes, width_voxels)
    lowest = -_maximum_around(-classes, width_voxels)
    return _mean_within(uncertainty, highest != lowest)


def top_fraction_mean(
    uncertainty: Tensor, statistics: VoxelStatistics, *, fraction: float = 0.01
) -> float:
    """Mean over the hottest voxels, a fraction of the volume and at least one voxel.

    Bias: the worst place of a volume decides, so the empty field of view plays no part; a few
    noisy voxels can decide as well.

    Args:
        uncertainty: the map [D, H, W].
        statistics: not used.
        fraction: in (0, 1]; 1 is ``mean``.

    Raises:
        ValueError: if the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}; it must lie in (0, 1]")
    n_voxels = math.ceil(fraction * uncertainty.numel())
    return float(uncertainty.flatten().topk(n_voxels, sorted=False).values.double().mean())


def max_patch_mean(
    uncertainty: Tensor, statistics: VoxelStatistics, *, patch_voxels: int | Sequence[int] = 16
) -> float:
    """Largest mean over a box: the hottest region of the volume.

    Bias: as ``top_fraction_mean``, but scattered noise does not count, only connected voxels.
    Its cost is three one-dimensional averages over the volume.

    Args:
        uncertainty: the map [D, H, W].
        statistics: not used.
        patch_voxels: the box's edge or edges; cut down to the volume where it is smaller.
    """
    edges = [patch_voxels] * 3 if isinstance(patch_voxels, int) else list(patch_voxels)
    box = [min(edge, size) for edge, size in zip(edges, uncertainty.shape, strict=True)]
    means = uncertainty[None, None].double()  # [1, 1, D, H, W]
    for axis, edge in enumerate(box):  # the mean over a box is the mean of means along each axis
        kernel = [edge if i == axis else 1 for i in range(3)]
        means = F.avg_pool3d(means, kernel, stride=1)
    return float(means.max())


def size_normalised_sum(
    uncertainty: Tensor, statistics: VoxelStatistics, *, exponent: float = 2 / 3
) -> float:
    """Sum of the uncertainty over V^exponent, V the number of predicted foreground voxels.

    Uncertainty lies along surfaces, and the surface of similar shapes grows with V^(2/3): with that
    exponent the score is the uncertainty per unit of surface, and neither large organs (``sum``)
    nor small ones (``foreground_mean``) come first only for their size.

    Args:
        uncertainty: the map [D, H, W].
        statistics: what the map was computed from.
        exponent: 0 gives ``sum``; 1 gives the uncertainty per predicted voxel.
    """
    n_foreground = int((statistics.prediction > 0).sum()) or uncertainty.numel()
    return float(uncertainty.double().sum()) / n_foreground**exponent


# Volume scores of their own: they take the statistics and ignore the map, which is for pictures.


def dice_disagreement(
    uncertainty: Tensor, statistics: VoxelStatistics, *, smooth_voxels: float = 1.0
) -> float:
    """Expected Dice disagreement of the passes with their mean, mean over foreground classes.

    For class c it is 1 minus the soft Dice, with squared volumes (Milletari et al., 3DV 2016), of
    all passes taken together against the mean prediction repeated T times::

        1 - 2 sum_t <p̄, p_t> / sum_t (|p̄|² + |p_t|²)  =  sum Var_t p_t / (2 |p̄|² + sum Var_t p_t)

    where <., .>, |.|² and the right-hand sums run over voxels. The identity follows from
    sum_t p_t = T p̄ and mean_t p_t² = p̄² + Var_t p_t, so mean and variance suffice and memory does
    not depend on T. A constant of ``smooth_voxels`` is added to both volumes together, so that a
    class that no pass finds scores 0 and not 0/0. In [0, 1).

    Rejected: the mean of the T separate Dice values. It needs p̄ before the first pass ends, hence
    all passes in memory or every pass twice; the two agree where the passes have equal volumes.

    Bias: relative to the structure's size, as Dice is: small structures and volumes with hardly any
    prediction come first.

    Source: after the structure-wise
    uncertainty of Roy et al., "Bayesian QuickNAT" (NeuroImage 2019), a Dice between passes.

    Args:
        uncertainty: not used.
        statistics: of the passes.
        smooth_voxels: s > 0.
    """
    spread = statistics.variance[1:].double().flatten(1).sum(1)  # [C-1]
    volume = statistics.mean[1:].double().square().flatten(1).sum(1)  # [C-1]
    return float((spread / (2 * volume + spread + smooth_voxels)).mean())


def expected_dice_error(
    uncertainty: Tensor, statistics: VoxelStatistics, *, smooth_voxels: float = 1.0
) -> float:
    """1 - the Dice to be expected by the probabilities, mean over foreground classes.

    For class c, predicted in the voxels M_c, it is 1 minus the soft Dice of the prediction and the
    mean probability::

        1 - (2 sum_{v in M_c} p̄_c(v) + s) / (|M_c| + sum_v p̄_c(v) + s)

    which is near the expected Dice loss if the probabilities are calibrated and voxels independent.
    A class that is neither predicted nor probable scores 0. In [0, 1).

    Bias: relative to the structure's size, as Dice is. What the network misses and is sure of does
    not count.

    Source: soft Dice confidence, Borges, Pacheco and Silva (arXiv:2402.10665), there of one class.

    Args:
        uncertainty: not used.
        statistics: of the passes.
        smooth_voxels: s > 0.
    """
    prediction, errors = statistics.prediction, []
    for index, probability in enumerate(statistics.mean[1:], 1):
        predicted = prediction == index
        agreed = float(probability[predicted].double().sum())
        volume = int(predicted.sum()) + float(probability.double().sum())
        errors.append(1 - (2 * agreed + smooth_voxels) / (volume + smooth_voxels))
    return math.fsum(errors) / len(errors)


def hidden_dice_error(uncertainty: Tensor, statistics: VoxelStatistics) -> float:
    """1 - Dice of the prediction and the hidden label, mean over the classes in either of them.

    Voxels that the data set's own label ignores are left out.

    An upper reference: no honest strategy knows it. A class that the label lacks but the prediction
    has counts as 1; a volume with neither scores 0. Needs ``reads_labels``.
    """
    prediction, label = statistics.prediction, statistics.hidden_label
    errors = []
    for index in range(1, len(statistics.mean)):
        predicted, true = (prediction == index) & (label >= 0), label == index
        size = int(predicted.sum() + true.sum())
        if size:
            errors.append(1 - 2 * int((predicted & true).sum()) / size)
    return math.fsum(errors) / len(errors) if errors else 0.0


def _mean_within(uncertainty: Tensor, mask: Tensor) -> float:
    """Mean over a mask; over the whole volume where the mask is empty."""
    chosen = uncertainty[mask] if bool(mask.any()) else uncertainty
    return float(chosen.double().mean())


def _maximum_around(volume: Tensor, radius: int) -> Tensor:
    """Maximum over the cube of 2 radius + 1 voxels around each voxel, [D, H, W] to the same."""
    if radius < 0:
        raise ValueError(f"a distance in voxels must be at least 0, got {radius}")
    pooled = volume[None, None]  # [1, 1, D, H, W]
    for axis in range(3):  # separable: 3 (2r + 1) comparisons a voxel instead of (2r + 1)³
        kernel = [2 * radius + 1 if i == axis else 1 for i in range(3)]
        padding = [radius if i == axis else 0 for i in range(3)]
        pooled = F.max_pool3d(pooled, kernel, stride=1, padding=padding)
    return pooled[0, 0]
