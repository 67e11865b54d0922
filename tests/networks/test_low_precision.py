"""Networks that a CPU computes wrongly in bfloat16 are found before their numbers are used."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from alseg.core.errors import PrecisionError
from alseg.networks import low_precision
from alseg.networks.low_precision import check_low_precision, checked_forward
from alseg.networks.shared_prefix import plain_forward
from tests.conftest import Outcome
from tests.networks.test_dropout import build


class WrongInBfloat16(TorchDispatchMode):
    """A CPU that computes one of the convolutions wrongly, or its gradients."""

    def __init__(self, wrong: Callable[..., Any], at: int = 0, factor: float = 1.1) -> None:
        super().__init__()
        self.wrong, self.at, self.factor = wrong, at, factor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Tensor | tuple[Tensor | None, ...]:
        computed = func(*args, **kwargs or {})
        if func is not self.wrong or args[0].dtype != torch.bfloat16:
            return computed  # type: ignore[no-any-return]
        parts = [computed] if isinstance(computed, Tensor) else list(computed)
        if parts[self.at] is not None:
            parts[self.at] = parts[self.at] * self.factor
        return parts[0] if isinstance(computed, Tensor) else tuple(parts)


def check(network: nn.Module, windows: Tensor, *, with_gradients: bool = True) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        check_low_precision(network, windows, with_gradients=with_gradients)


@pytest.mark.parametrize("model", ["unet_small", "auto", "dynunet"])
def test_rounding_is_no_error_and_the_network_stays_as_it_is(model: str) -> None:
    network = build(model).train()
    next(iter(network.children())).eval()
    modes = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    windows = torch.rand(2, 1, 48, 48, 48)
    state = torch.get_rng_state()
    check(network, windows)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


FORWARD = torch.ops.aten.convolution.default
BACKWARD = torch.ops.aten.convolution_backward.default


@pytest.mark.parametrize("factor", [1.1, float("nan")])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("model", ["unet_small", "dynunet"])  # laid out for a CPU, and not
def test_wrong_numbers_are_an_error_in_that_precision_only(
    model: str, context: Callable[[], AbstractContextManager[None]], factor: float
) -> None:
    network, windows = build(model), torch.rand(2, 1, 32, 32, 32)
    told = r"windows of 32 x 32 x 32 and the network's convolution of kernel 3 x 3 x 3, stride"
    with context(), WrongInBfloat16(FORWARD, factor=factor):
        plain_forward(network)(windows)
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(PrecisionError, match=told):
            plain_forward(network)(windows)


def test_a_pass_that_is_made_anyway_gives_what_it_gives_unchecked() -> None:
    network, windows = build("unet_small"), torch.rand(2, 1, 32, 32, 32)
    for context in (torch.no_grad, torch.inference_mode):
        with context(), torch.autocast("cpu", torch.bfloat16):
            expected = network(windows)
            assert torch.equal(checked_forward(network, windows), expected)


@pytest.mark.parametrize("at", [0, 1, 2], ids=["image", "weight", "bias"])
def test_wrong_gradients_are_an_error_of_a_training_only(at: int) -> None:
    network, windows = build("unet_small"), torch.rand(2, 1, 32, 32, 16)
    with WrongInBfloat16(BACKWARD, at):
        check(network, windows, with_gradients=False)
        with pytest.raises(PrecisionError, match="gradients of a convolution of kernel"):
            check(network, windows)
    assert all(weight.grad is None for weight in network.parameters())


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
        check(network, torch.rand(1, 1, 16, 16, size), with_gradients=False)
    assert sizes == [8, 16, 24, 32]
    for size in (8, 8, 16, 40):  # gradients, of what has been looked at without
        check(network, torch.rand(1, 1, 16, 16, size))
        check(network, torch.rand(1, 1, 16, 16, size), with_gradients=False)
    assert sizes == [8, 16, 24, 32, 8, 16]


Convolution = nn.Conv3d | nn.ConvTranspose3d
WRONG = [  # input, layer, what is told of it
    ((8, 8, 2), nn.Conv3d(16, 4, 3, stride=2, padding=1), r"from 8 x 8 x 2 to 4 x 4 x 1 voxels"),
    ((4, 4, 1), nn.Conv3d(16, 4, (1, 1, 3), (1, 1, 2), (0, 0, 1)), r"kernel 1 x 1 x 3, stride 1"),
    ((4, 4, 1), nn.ConvTranspose3d(16, 4, 2, stride=2), r"gradients of a transposed .* 8 x 8 x 2"),
    ((1, 8, 8), nn.Conv3d(8, 4, 3, padding=1), r"from 1 x 8 x 8"),
]
RIGHT = [
    ((8, 8, 4), nn.Conv3d(16, 4, 3, stride=2, padding=1)),
    ((8, 8, 1), nn.Conv3d(16, 4, 3, padding=1)),
    ((8, 2, 4), nn.Conv3d(16, 4, 3, stride=2, padding=1)),
    ((2, 8, 4), nn.Conv3d(16, 4, 3, stride=2, padding=1)),
    ((4, 4, 2), nn.ConvTranspose3d(16, 4, 2, stride=2)),
    ((8, 8, 8), nn.Conv3d(16, 4, 1, stride=2)),  # of a residual unit
    ((1, 8, 8), nn.Conv3d(16, 4, 3, padding=1)),
    ((1, 8, 8), nn.Conv3d(8, 4, (1, 3, 3), padding=(0, 1, 1))),
    ((8, 8, 2), nn.Conv3d(16, 4, 1, stride=2)),
    ((1, 8, 8), nn.ConvTranspose3d(8, 4, 2, stride=2)),
]


@pytest.mark.parametrize(("size", "layer", "told"), WRONG)
def test_convolutions_that_amx_may_compute_wrongly_are_told_by_their_sizes(
    size: tuple[int, int, int], layer: Convolution, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_precision, "has_amx", lambda: True)
    with pytest.raises(PrecisionError, match=told):
        check(layer, torch.rand(1, layer.in_channels, *size))


def test_a_cpu_without_amx_may_compute_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_precision, "has_amx", lambda: False)
    layer = nn.ConvTranspose3d(16, 4, 2, stride=2)  # the gradient of its image is wrong with AMX
    check(layer, torch.rand(1, 16, 4, 4, 1))


@pytest.mark.parametrize(("size", "layer"), RIGHT)
def test_others_and_their_gradients_are_right_on_any_cpu(
    size: tuple[int, int, int], layer: Convolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_precision, "has_amx", lambda: True)
    check(layer, torch.rand(2, layer.in_channels, *size))


NARROW_SCORING = (
    "data.scoring_inferer={_target_: monai.inferers.SlidingWindowInferer, roi_size: [16,16,8]}"
)


@pytest.mark.parametrize(
    "settings",
    [
        ("data.patch_size=[16,16,8]", "strategy=random"),
        (NARROW_SCORING, "strategy=variance"),
        (NARROW_SCORING, "strategy=core_set"),
        (NARROW_SCORING, "strategy=variance", "uncertainty=tta"),
        (NARROW_SCORING, "strategy=variance", "uncertainty=ensemble", "uncertainty.n_members=2"),
        (NARROW_SCORING, "strategy=variance", "uncertainty=svgd"),
        (NARROW_SCORING, "strategy=core_set", "pool.unit=patch", "pool.patch_voxels=[8,8,8]"),
    ],
    ids=lambda settings: "-".join(settings[1:]),
)
def test_a_run_with_such_a_convolution_ends_with_what_helps(
    settings: tuple[str, ...], train: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_precision, "has_amx", lambda: True)
    run = train(*settings, "pictures=0", "model=unet_small", "trainer.precision=bf16-mixed")
    told = " ".join(run.err.split())
    assert run.exit_code == 2
    assert "for windows of 16 x 16 x 8 and the network's convolution of kernel 3 x 3 x 3" in told
    assert "use trainer.precision=32-true" in told
    assert "Traceback" not in run.err


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
        assert re.search(r"wrong\s+numbers\s+\(torch", run.err)
        assert "use trainer.precision=32-true" in " ".join(run.err.split())
        assert "Traceback" not in run.err
