"""Networks that a CPU computes wrongly in bfloat16 are found before their numbers are used."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from alseg.core.errors import PrecisionError
from alseg.networks import low_precision
from alseg.networks.low_precision import check_low_precision
from alseg.networks.shared_prefix import plain_forward
from tests.conftest import Outcome
from tests.networks.test_dropout import build


class WrongInBfloat16(nn.Module):
    """As torch is with some sizes on some CPUs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        wrong = torch.is_autocast_enabled("cpu")
        return self.network(x.flip(2) if wrong else x)  # type: ignore[no-any-return]


def check(network: nn.Module, windows: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        check_low_precision(network, windows)


@pytest.mark.parametrize("model", ["unet_small", "auto", "dynunet"])
def test_rounding_is_no_error_and_the_network_stays_as_it_is(model: str) -> None:
    network = build(model).train()
    next(iter(network.children())).eval()
    modes = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    windows = torch.rand(2, 1, 32, 32, 16)
    state = torch.get_rng_state()
    check(network, windows)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("model", ["unet_small", "dynunet"])  # laid out for a CPU, and not
def test_wrong_numbers_are_an_error_in_that_precision_only(model: str) -> None:
    network, windows = WrongInBfloat16(build(model)), torch.rand(2, 1, 32, 32, 16)
    check_low_precision(network, windows)
    with torch.no_grad():
        plain_forward(network)(windows)
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(PrecisionError, match=r"windows of 32 x 32 x 16: they differ .*%"),
        ):
            plain_forward(network)(windows)


def test_numbers_that_are_none_are_wrong_numbers() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.sum() * (torch.nan if torch.is_autocast_enabled("cpu") else 1)

    with pytest.raises(PrecisionError, match="nan%"):
        check(Nothing(), torch.rand(1, 1, 4, 4, 4))


def test_a_last_layer_of_zeros_is_no_error() -> None:
    layer = nn.Conv3d(1, 2, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    check(layer, torch.rand(1, 1, 4, 4, 4))


def test_a_size_is_looked_at_once_and_a_few_of_them_at_all() -> None:
    sizes: list[int] = []
    network = build("unet_tiny")
    network.register_forward_hook(lambda _, x, y: sizes.append(x[0].shape[-1]))
    for size in (8, 16, 8, 24, 32, 40, 48):
        check(network, torch.rand(1, 1, 16, 16, size))
    assert sizes == [8, 8, 16, 16, 24, 24, 32, 32]


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_training_ends_before_its_first_step(
    precision: str, train: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_precision, "MOST", 0.0)
    run = train("strategy=random", "pictures=0", f"trainer.precision={precision}")
    if precision == "32-true":
        assert run.exit_code == 0, run.err
    else:
        assert run.exit_code == 2
        assert re.search(r"wrong numbers for the\s+network and windows of", run.err)
        assert "use trainer.precision=32-true" in " ".join(run.err.split())
        assert "Traceback" not in run.err
