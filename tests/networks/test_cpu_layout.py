"""Convolutions laid out for a CPU against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from alseg.networks import cpu_layout, shared_prefix
from alseg.networks.cpu_layout import LaidOut, pays
from alseg.networks.shared_prefix import MOST_SIZES, SplitNetwork, plain_forward, two_parts
from tests.networks.test_dropout import build

CONVOLUTIONS = {
    "many channels": lambda: nn.Conv3d(2, 20, 3, padding=1),
    "three classes": lambda: nn.Conv3d(5, 3, 3, padding=1),
    "a kernel of one": lambda: nn.Conv3d(5, 3, 1),
    "a kernel of five": lambda: nn.Conv3d(2, 2, (3, 1, 5), stride=(2, 1, 1), padding=(1, 0, 1)),
    "stride 2": lambda: nn.Conv3d(2, 4, 3, stride=2, padding=1),
    "upwards to three classes": lambda: nn.ConvTranspose3d(5, 3, 3, 2, 1, output_padding=1),
    "upwards to six classes": lambda: nn.ConvTranspose3d(5, 6, 3, 2, 1, output_padding=1),
    "upwards to many": lambda: nn.ConvTranspose3d(5, 12, 3, 2, 1, output_padding=1),
    "upwards by two": lambda: nn.ConvTranspose3d(5, 3, 2, 2),
    "upwards without a bias": lambda: nn.ConvTranspose3d(4, 2, 3, 2, 1, 1, bias=False),
}


def norm(n_channels: int) -> nn.BatchNorm3d:
    layer = nn.BatchNorm3d(n_channels)
    for values in (layer.weight, layer.bias, layer.running_mean):
        nn.init.uniform_(values, -1, 1)  # type: ignore[arg-type]
    nn.init.uniform_(layer.running_var, 0.5, 2)  # type: ignore[arg-type]
    return layer.eval()


@pytest.mark.parametrize("name", CONVOLUTIONS)
@settings(max_examples=12, deadline=None)
@given(size=st.tuples(*[st.integers(3, 9)] * 3), batch=st.integers(1, 3), with_norm=st.booleans())
def test_the_numbers_are_those_of_the_network(
    name: str, size: tuple[int, int, int], batch: int, with_norm: bool
) -> None:
    torch.manual_seed(0)
    convolution = CONVOLUTIONS[name]()
    behind = norm(convolution.out_channels) if with_norm else nn.Identity()
    x = torch.randn(batch, convolution.in_channels, *size)
    with torch.no_grad():
        laid_out = LaidOut(convolution, behind if with_norm else None)
        torch.testing.assert_close(laid_out(x), behind(convolution(x)), atol=1e-5, rtol=1e-5)
    assert not list(laid_out.parameters())


@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 3, 1), (1, 1, 5), (3, 3, 3)])
@pytest.mark.parametrize("n_in", [8, 16, 32])
def test_the_numbers_are_those_of_the_network_in_bfloat16_as_well(
    kernel: tuple[int, int, int], n_in: int
) -> None:
    """With AMX, oneDNN 3.12 has other ones for 16 channels and a stride of 4."""
    torch.manual_seed(0)
    padding = tuple(size // 2 for size in kernel)
    for convolution in (
        nn.Conv3d(n_in, 4, kernel, padding=padding),
        nn.ConvTranspose3d(n_in, 4, 3, 2, 1, output_padding=1),
    ):
        x = torch.randn(2, n_in, 8, 8, 12)
        with torch.no_grad():
            expected = convolution(x)
            with torch.autocast("cpu", torch.bfloat16):
                found = LaidOut(convolution, None)(x)
        assert found.dtype == torch.bfloat16
        assert (found - expected).norm() < 0.01 * expected.norm()


def test_narrow_convolutions_compute_neighbours_as_channels() -> None:
    layers = {name: LaidOut(make(), None) for name, make in CONVOLUTIONS.items()}
    assert {name for name, layer in layers.items() if layer.rows > 1} == {
        "upwards to three classes",
        "upwards without a bias",
    }
    assert {name for name, layer in layers.items() if layer.n_neighbours > 1} == {
        "three classes",
        "a kernel of one",
        "a kernel of five",
        "upwards to three classes",
        "upwards to six classes",
        "upwards without a bias",
    }


def test_weights_that_change_between_two_volumes_are_taken_in() -> None:
    network, windows = build("unet_tiny"), torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        two_parts(network, windows)
        for parameter in network.parameters():
            parameter.mul_(1.5)
        for buffer in network.buffers():
            buffer.add_(1)
        parts = two_parts(network, windows)
        logits = parts.tail(parts.head(windows), None)
        torch.testing.assert_close(logits, network(windows), atol=1e-4, rtol=1e-4)


def test_networks_with_other_norms_keep_their_layout() -> None:
    assert pays(build("unet_small"))
    assert not pays(build("dynunet"))


@pytest.mark.parametrize("model", ["unet_small", "unet_light", "basic_unet", "dynunet"])
@pytest.mark.parametrize("n_windows", [1, 3])
def test_a_plain_forward_pass_is_the_networks(model: str, n_windows: int) -> None:
    network, windows = build(model), torch.rand(n_windows, 1, 32, 16, 16)
    with torch.no_grad():
        logits = plain_forward(network)(windows)
        torch.testing.assert_close(logits, network(windows), atol=1e-4, rtol=1e-4)


def test_bfloat16_changes_the_rounding_of_a_plain_pass_only() -> None:
    network, windows = build("auto"), torch.rand(2, 1, 32, 32, 16)
    forward = plain_forward(network)
    with torch.no_grad():
        expected = network(windows)
        torch.testing.assert_close(forward(windows), expected, atol=1e-4, rtol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(windows)
    assert logits.dtype == torch.bfloat16
    assert 0 < (logits - expected).norm() < 0.02 * expected.norm()


def test_a_layout_that_is_wrong_in_one_precision_is_used_in_the_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    convolved, n_wrong = cpu_layout._convolved, [0]

    def wrong_in_bfloat16(x: Tensor, *given: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            n_wrong[0] += 1
            return convolved(x.flip(-1), *given)
        return convolved(x, *given)

    monkeypatch.setattr(cpu_layout, "_convolved", wrong_in_bfloat16)
    network, windows = build("auto"), torch.rand(2, 1, 32, 32, 16)
    with torch.no_grad():
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                logits, expected = plain_forward(network)(windows), network(windows)
            assert torch.equal(logits, expected)
        assert n_wrong[0] > 0
        assert "the traced network gives other numbers in torch.bfloat16" in caplog.text
        parts = two_parts(network, windows)
        assert isinstance(parts, SplitNetwork)
        logits = parts.tail(parts.head(windows), None)
        torch.testing.assert_close(logits, network(windows), atol=1e-4, rtol=1e-4)


def test_windows_of_ever_new_sizes_run_through_the_network_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, calls = build("unet_tiny"), []
    monkeypatch.setattr(
        shared_prefix, "two_parts", lambda *given: calls.append(given) or two_parts(*given)
    )
    with torch.no_grad():
        for size in range(4, 14):
            windows = torch.rand(2, 1, 4 * size, 16, 16)
            logits = plain_forward(network)(windows)
            torch.testing.assert_close(logits, network(windows), atol=1e-4, rtol=1e-4)
    assert len(calls) == MOST_SIZES
