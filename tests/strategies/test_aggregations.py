"""Aggregations on volumes whose scores one can compute by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alseg.strategies import aggregations as agg
from alseg.strategies.statistics import VoxelStatistics
from tests.strategies.builders import statistics_of

TwoClass = Callable[[Tensor], VoxelStatistics]


@pytest.fixture
def ramp() -> Tensor:
    """A map that rises by one along the first axis: 0, 1, ..., 6 on 7 x 5 x 5 voxels."""
    return torch.arange(7.0)[:, None, None].expand(7, 5, 5)


@pytest.fixture
def slab(two_class: TwoClass) -> VoxelStatistics:
    """Predicted foreground in the planes 4 and 5 of 7."""
    foreground = torch.zeros(7, 5, 5)
    foreground[4:6] = 0.9
    return two_class(foreground)


@pytest.fixture
def nothing(two_class: TwoClass) -> VoxelStatistics:
    """No voxel is predicted as foreground."""
    return two_class(torch.full((7, 5, 5), 0.1))


def test_mean_and_sum(ramp: Tensor, slab: VoxelStatistics) -> None:
    assert agg.mean(ramp, slab) == pytest.approx(3)
    assert agg.sum(ramp, slab) == pytest.approx(3 * 175)


@pytest.mark.parametrize(("dilation", "expected"), [(0, 4.5), (1, 4.5), (2, 4.0), (9, 3.0)])
def test_foreground_mean(
    ramp: Tensor, slab: VoxelStatistics, dilation: int, expected: float
) -> None:
    # planes 4-5; 3-6; 2-6; all
    score = agg.foreground_mean(ramp, slab, dilation_voxels=dilation)
    assert score == pytest.approx(expected)


def test_boundary_mean(ramp: Tensor, slab: VoxelStatistics) -> None:
    assert agg.boundary_mean(ramp, slab) == pytest.approx((3 + 4 + 5 + 6) / 4)
    assert agg.boundary_mean(ramp, slab, width_voxels=2) == pytest.approx((2 + 3 + 4 + 5 + 6) / 5)


def test_top_fraction_mean(ramp: Tensor, slab: VoxelStatistics) -> None:
    assert agg.top_fraction_mean(ramp, slab, fraction=1 / 7) == pytest.approx(6)
    assert agg.top_fraction_mean(ramp, slab, fraction=2 / 7) == pytest.approx(5.5)
    assert agg.top_fraction_mean(ramp, slab, fraction=1e-9) == 6  # one voxel
    assert agg.top_fraction_mean(ramp, slab, fraction=1) == pytest.approx(3)
    for fraction in (0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"\(0, 1\]"):
            agg.top_fraction_mean(ramp, slab, fraction=fraction)


def test_max_patch_mean(slab: VoxelStatistics) -> None:
    uncertainty = torch.zeros(7, 5, 5)
    uncertainty[1:3, 1:3, 1:3] = 1  # a blob of 8 voxels
    uncertainty[6, 4, 4] = 4  # a lone hot voxel
    assert agg.max_patch_mean(uncertainty, slab, patch_voxels=1) == 4
    assert agg.max_patch_mean(uncertainty, slab, patch_voxels=2) == 1
    assert agg.max_patch_mean(uncertainty, slab, patch_voxels=[2, 1, 1]) == 2
    # larger than the volume: the whole volume
    assert agg.max_patch_mean(uncertainty, slab, patch_voxels=64) == pytest.approx(12 / 175)


def test_size_normalised_sum_does_not_depend_on_the_size_of_alike_shapes(
    two_class: TwoClass,
) -> None:
    def score(edge: int) -> float:
        foreground = torch.zeros(40, 40, 40)
        foreground[4 : 4 + edge, 4 : 4 + edge, 4 : 4 + edge] = 0.9
        inside = torch.zeros_like(foreground)
        inside[5 : 3 + edge, 5 : 3 + edge, 5 : 3 + edge] = 1
        surface = (foreground > 0.5).float() - inside
        return agg.size_normalised_sum(surface, two_class(foreground))

    # Surface voxels of a cube of edge a: 6a² - 12a + 8, hence 6 - 12/a + 8/a².
    assert score(10) == pytest.approx(4.88)
    assert score(30) == pytest.approx(6 - 12 / 30 + 8 / 900)


def test_without_foreground_the_whole_volume_stands_in(
    ramp: Tensor, nothing: VoxelStatistics
) -> None:
    assert agg.foreground_mean(ramp, nothing) == pytest.approx(3)
    assert agg.boundary_mean(ramp, nothing) == pytest.approx(3)
    assert agg.size_normalised_sum(ramp, nothing) == pytest.approx(3 * 175 ** (1 / 3))


def test_boundary_mean_of_a_volume_of_foreground_alone(ramp: Tensor, two_class: TwoClass) -> None:
    assert agg.boundary_mean(ramp, two_class(torch.ones(7, 5, 5))) == pytest.approx(3)


def soft_dice(p: Tensor, q: Tensor) -> float:
    return float(2 * (p * q).sum() / (p.square().sum() + q.square().sum()))


def test_dice_disagreement_by_hand() -> None:
    sure = torch.zeros(2, 1, 1, 4)
    sure[1, ..., :2], sure[0, ..., 2:] = 1, 1
    other = sure.flip(-1)
    score = agg.dice_disagreement
    assert score(torch.empty(0), statistics_of([sure, sure])) == 0
    # p̄ is 1/2 everywhere: variance 1/4 in 4 voxels, |p̄|² = 1
    assert score(torch.empty(0), statistics_of([sure, other]), smooth_voxels=1e-9) == pytest.approx(
        1 / 3
    )
    # which here, with equal volumes, is the mean of the passes' own values
    mean = torch.full((1, 1, 4), 0.5)
    assert 1 - soft_dice(mean, sure[1]) == pytest.approx(1 / 3)


def test_dice_disagreement_equals_the_stacked_dice() -> None:
    stack = torch.softmax(torch.randn(5, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1)), 1)
    repeated = stack.mean(0, keepdim=True).expand_as(stack)
    expected = 1 - sum(soft_dice(repeated[:, c], stack[:, c]) for c in (1, 2)) / 2
    statistics = statistics_of(list(stack))
    assert agg.dice_disagreement(torch.empty(0), statistics, smooth_voxels=1e-9) == pytest.approx(
        expected, rel=1e-4
    )
    # and is near the mean over passes, which would need all passes at once
    by_pass = [1 - soft_dice(repeated[t, c], stack[t, c]) for t in range(5) for c in (1, 2)]
    assert sum(by_pass) / len(by_pass) == pytest.approx(expected, rel=0.02)


def test_dice_disagreement_of_a_class_that_no_pass_finds() -> None:
    background = torch.zeros(3, 2, 2, 2)
    background[0] = 1
    assert agg.dice_disagreement(torch.empty(0), statistics_of([background, background])) == 0


def test_expected_dice_error_by_hand() -> None:
    foreground = torch.tensor([[[0.9, 0.6, 0.4, 0.1]]])
    statistics = statistics_of([torch.stack([1 - foreground, foreground])])
    # two voxels are predicted, with 1.5 of the 2 that are likely: 2 * 1.5 / (2 + 2)
    found = agg.expected_dice_error(foreground[0], statistics, smooth_voxels=1e-9)
    assert found == pytest.approx(1 - 3 / 4)


def test_expected_dice_error_is_the_mean_loss_over_labels_drawn_from_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    foreground = torch.rand(12, 12, 12, generator=generator) ** 3
    statistics = statistics_of([torch.stack([1 - foreground, foreground])])
    predicted, losses = foreground > 0.5, []
    for _ in range(200):
        label = torch.rand(foreground.shape, generator=generator) < foreground
        overlap = 2 * int((predicted & label).sum()) / int(predicted.sum() + label.sum())
        losses.append(1 - overlap)
    found = agg.expected_dice_error(foreground, statistics)
    assert found == pytest.approx(sum(losses) / len(losses), abs=0.005)


def test_expected_dice_error_weighs_classes_alike_and_ignores_one_that_is_absent() -> None:
    certain = torch.zeros(4, 1, 1, 100)
    certain[1, ..., :90], certain[2, ..., 90:94], certain[0, ..., 94:] = 1, 0.75, 1
    certain[0, ..., 90:94] = 0.25
    found = agg.expected_dice_error(certain[0], statistics_of([certain]), smooth_voxels=1e-9)
    assert found == pytest.approx((0 + (1 - 6 / 7) + 0) / 3)


def test_hidden_dice_error_by_hand() -> None:
    def one_hot(*classes: int) -> Tensor:
        return torch.eye(3)[list(classes)].T.reshape(3, -1, 1, 1)

    def score(predicted: tuple[int, ...], true: tuple[int, ...]) -> float:
        label = torch.tensor(true, dtype=torch.uint8)[:, None, None]
        return agg.hidden_dice_error(torch.empty(0), statistics_of([one_hot(*predicted)], label))

    assert score((0, 1, 2), (0, 1, 2)) == 0
    assert score((1, 1, 0, 0), (1, 0, 0, 0)) == pytest.approx(1 / 3)  # class 2 in neither
    assert score((1, 2, 0, 0), (1, 0, 0, 0)) == pytest.approx(0.5)  # class 2 invented
    assert score((0, 0), (0, 0)) == 0
