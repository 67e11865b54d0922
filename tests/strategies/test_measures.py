"""Measures against hand-computed cases and an independent stacked computation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from alseg.strategies import measures
from alseg.strategies.statistics import VoxelStatistics
from tests.strategies.builders import statistics_of

LOG2 = math.log(2)
OneVoxel = Callable[[list[list[float]]], VoxelStatistics]

AGREE = [[0.0, 1.0], [0.0, 1.0]]  # all passes sure of the same
UNSURE = [[0.5, 0.5], [0.5, 0.5]]  # all passes equally unsure
OPPOSITE = [[1.0, 0.0], [0.0, 1.0]]  # each pass sure, of the opposite


@pytest.mark.parametrize(
    ("measure", "agree", "unsure", "opposite"),
    [
        (measures.variance, 0, 0, 0.25),
        (measures.entropy, 0, LOG2, LOG2),
        (measures.expected_entropy, 0, LOG2, 0),
        (measures.mutual_information, 0, 0, LOG2),
        (measures.margin, 0, 1, 1),
        (measures.least_confidence, 0, 0.5, 0.5),
        (measures.variation_ratio, 0, 0, 0.5),
    ],
)
def test_two_classes_by_hand(
    one_voxel: OneVoxel,
    measure: Callable[[VoxelStatistics], torch.Tensor],
    agree: float,
    unsure: float,
    opposite: float,
) -> None:
    for passes, expected in ((AGREE, agree), (UNSURE, unsure), (OPPOSITE, opposite)):
        value = measure(one_voxel(passes))
        assert value.shape == (1, 1, 1)
        assert value.item() == pytest.approx(expected, abs=1e-6)


def test_three_classes_by_hand(one_voxel: OneVoxel) -> None:
    statistics = one_voxel([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.7, 0.3, 0.0]])  # mean .5 .3 .2
    assert measures.margin(statistics).item() == pytest.approx(0.8)
    assert measures.least_confidence(statistics).item() == pytest.approx(0.5)
    assert measures.variation_ratio(statistics).item() == pytest.approx(1 / 3)  # votes 2, 1, 0
    # class 1: .5 .1 .3 -> (.04 + .04 + 0) / 3; class 2: .3 .3 0 -> (.01 + .01 + .04) / 3
    assert measures.variance(statistics).item() == pytest.approx((0.08 + 0.06) / 3)


def test_measures_match_a_stacked_computation() -> None:
    generator = torch.Generator().manual_seed(3)
    stack = torch.softmax(2 * torch.randn(7, 4, 3, 5, 2, generator=generator), dim=1)
    statistics = statistics_of(list(stack))
    mean = stack.mean(0)
    entropies = -(stack * stack.log()).sum(1)
    expected = {
        measures.variance: stack.var(0, unbiased=False)[1:].sum(0),
        measures.entropy: -(mean * mean.log()).sum(0),
        measures.expected_entropy: entropies.mean(0),
        measures.mutual_information: -(mean * mean.log()).sum(0) - entropies.mean(0),
        measures.margin: 1 - mean.sort(0).values[-1] + mean.sort(0).values[-2],
        measures.least_confidence: 1 - mean.max(0).values,
        measures.variation_ratio: 1
        - torch.stack([(stack.argmax(1) == c).float().mean(0) for c in range(4)]).max(0).values,
    }
    for measure, reference in expected.items():
        torch.testing.assert_close(measure(statistics), reference, msg=measure.__name__)
    assert statistics.votes.sum(0).eq(7).all()


def test_mutual_information_is_never_negative() -> None:
    stack = torch.softmax(torch.randn(1, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0)), 1)
    assert measures.mutual_information(statistics_of([*stack, *stack, *stack])).min() >= 0


def test_class_entropy_by_hand(one_voxel: OneVoxel) -> None:
    scores = measures.class_entropy(one_voxel([[0.5, 0.5, 0.0]]))
    torch.testing.assert_close(scores, torch.tensor([0.5 * LOG2, 0.0], dtype=torch.float64))


def test_hidden_labels_are_refused_without_the_flag(one_voxel: OneVoxel) -> None:
    for measure in (measures.prediction_error, measures.hidden_class_voxels):
        with pytest.raises(ValueError, match="reads_labels"):
            measure(one_voxel(AGREE))


def test_hidden_label_measures_by_hand() -> None:
    prediction = torch.eye(3)[[0, 1, 2]].T.reshape(3, 3, 1, 1)  # voxels of class 0, 1, 2
    statistics = statistics_of(
        [prediction], torch.tensor([1, 1, 0], dtype=torch.uint8)[:, None, None]
    )
    assert measures.prediction_error(statistics).flatten().tolist() == [1, 0, 1]
    assert measures.hidden_class_voxels(statistics).tolist() == [2, 0]


def test_memory_does_not_grow_with_passes() -> None:
    def n_bytes(n_passes: int) -> int:
        statistics = statistics_of([torch.full((3, 4, 4, 4), 1 / 3)] * n_passes)
        tensors = [v for v in vars(statistics).values() if isinstance(v, torch.Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)

    assert n_bytes(1) == n_bytes(50)
