"""The weights of pseudo-labels by hand."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from alseg.active.pseudo_labels import Judged, SemiSupervised, confidence_of, most_confident
from alseg.core.errors import ConfigError
from alseg.training.weighting import weighted_loss
from tests.strategies.builders import statistics_of


def volume(foreground: list[float]) -> Tensor:
    """Two classes on a row of voxels, [2, 1, 1, n]."""
    p = torch.tensor(foreground, dtype=torch.float64).view(1, 1, 1, -1)
    return torch.cat([1 - p, p])


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def test_confidence_is_one_minus_the_normalised_entropy_around_the_foreground() -> None:
    # two passes with the mean (0.1, 0.4, 0.8, 0.2, 0.01): voxel 2 is foreground
    passes = [volume([0.1, 0.5, 0.9, 0.3, 0.01]), volume([0.1, 0.3, 0.7, 0.1, 0.01])]
    statistics = statistics_of(passes)
    alone = 1 - entropy(0.8) / math.log(2)
    assert confidence_of(statistics, 0) == pytest.approx(alone)
    around = 1 - (entropy(0.4) + entropy(0.8) + entropy(0.2)) / 3 / math.log(2)
    assert confidence_of(statistics, 1) == pytest.approx(around)
    assert confidence_of(statistics_of([volume([0.0, 1.0])]), 0) == 1
    assert confidence_of(statistics_of([volume([0.1, 0.3])]), 0) is None  # nothing found


def test_the_most_confident_share_is_chosen_and_ties_go_by_id() -> None:
    judged = [Judged("d", 0.5), Judged("a", 0.9), Judged("c", 0.5), Judged("b", None)]
    assert most_confident(judged, 0.5) == {"a": 0.9, "c": 0.5}
    assert most_confident(judged, 0.01) == {"a": 0.9}
    assert most_confident(judged, 1.0) == {"a": 0.9, "c": 0.5, "d": 0.5}
    assert most_confident([Judged("b", None)], 1.0) == {}


def test_weighted_loss_by_hand() -> None:
    loss = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 2, 3, 2, generator=generator)
    labels = torch.randint(0, 3, (4, 1, 2, 3, 2), generator=generator)
    weights = torch.tensor([1.0, 0.5, 1.0, 0.25])
    annotated = loss(logits[[0, 2]], labels[[0, 2]])
    expected = 2 * annotated + 0.5 * loss(logits[1:2], labels[1:2])
    expected = (expected + 0.25 * loss(logits[3:], labels[3:])) / 4
    torch.testing.assert_close(weighted_loss(loss, logits, labels, weights), expected)
    ones = weighted_loss(loss, logits, labels, torch.ones(4))
    torch.testing.assert_close(ones, loss(logits, labels))


def test_steps_are_shared_and_settings_are_checked() -> None:
    assert SemiSupervised(step_share=0.25).steps(100) == 25
    assert SemiSupervised(step_share=0.01).steps(2) == 1
    assert SemiSupervised(step_share=0.99).steps(2) == 1
    for name, value in (
        ("step_share", 1.0),
        ("case_share", 0),
        ("annotated_share", 1.0),
        ("pseudo_weight", 0),
        ("learning_rate_factor", 2),
        ("max_candidates", 0),
    ):
        with pytest.raises(ConfigError, match=f"semi_supervised.{name}"):
            SemiSupervised(**{name: value})
