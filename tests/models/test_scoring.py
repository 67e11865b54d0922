"""What scoring hands to a strategy."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer
from monai.networks.nets import UNet

from alseg.models.segmentation import Scoring
from alseg.models.uncertainty import MCDropout
from alseg.strategies import aggregations, measures, selectors
from alseg.strategies.strategy import Strategy

LABEL = torch.zeros(8, 8, 8, dtype=torch.uint8)


def scoring(*, reads_labels: bool, deterministic: bool = True) -> Scoring:
    strategy = Strategy(
        "error",
        selectors.top_k,
        measures.prediction_error,
        aggregations.hidden_dice_error,
        deterministic=deterministic,
        reads_labels=reads_labels,
    )
    return Scoring(strategy, MCDropout(3), SimpleInferer(), base_seed=1, round_number=1)


@pytest.fixture
def network() -> UNet:
    torch.manual_seed(0)
    return UNet(3, 1, 2, channels=(4, 8), strides=(2,), dropout=0.3).eval()


def test_a_hidden_label_reaches_flagged_strategies_alone(network: UNet) -> None:
    image = torch.randn(1, 1, 8, 8, 8)
    case = (network, image, "case_1", LABEL)
    score = scoring(reads_labels=True).score(*case).score
    assert score is not None
    assert 0 <= score <= 1
    with pytest.raises(ValueError, match="reads_labels"):
        scoring(reads_labels=False).score(*case)


def test_deterministic_strategies_make_one_pass_without_dropout(network: UNet) -> None:
    image = torch.randn(1, 1, 8, 8, 8)
    plain = scoring(reads_labels=False)
    statistics = plain.statistics(network, image, "case_1")
    assert statistics.n_passes == 1
    with torch.no_grad():
        torch.testing.assert_close(statistics.mean, torch.softmax(network(image)[0], dim=0))
    many = scoring(reads_labels=False, deterministic=False)
    assert many.statistics(network, image, "case_1").n_passes == 3
