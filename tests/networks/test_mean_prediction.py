"""Several networks whose predictions are averaged."""

from __future__ import annotations

import pytest
import torch

from alseg.networks.mean_prediction import MeanPrediction
from alseg.networks.shared_prefix import plain_forward
from tests.networks.test_dropout import build


@pytest.mark.parametrize("model", ["basic_unet", "unet_small", "auto"])
def test_its_softmax_is_the_mean_of_theirs(model: str) -> None:
    networks = [build(model), build(model)]
    with torch.no_grad():
        for parameter in networks[1].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    windows = torch.randn(2, 1, 16, 16, 16)
    both = MeanPrediction(networks).eval()
    with torch.no_grad():
        each = torch.stack([torch.softmax(network(windows), 1) for network in networks])
        found = torch.softmax(both(windows), 1)
        torch.testing.assert_close(found, each.mean(0))
        laid_out = torch.softmax(plain_forward(both)(windows), 1)
        torch.testing.assert_close(laid_out, found, rtol=0, atol=1e-3)
    assert float((each[0] - each[1]).abs().max()) > 0.01


def test_a_network_that_is_sure_of_two_things_leaves_finite_numbers() -> None:
    scale = 1000.0

    class Sure(torch.nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(x.shape[0], 3, *x.shape[2:])
            logits[:, self.index] = scale
            return logits

    found = MeanPrediction([Sure(0), Sure(1)])(torch.zeros(1, 1, 2, 2, 2))
    assert found.isfinite().all()
    torch.testing.assert_close(torch.softmax(found, 1)[0, :, 0, 0, 0], torch.tensor([0.5, 0.5, 0]))
