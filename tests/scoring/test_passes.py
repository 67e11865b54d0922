"""Fast passes against the plain way: same masks, same numbers, fewer forward passes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from alseg.networks.dropout import active_dropout_layers
from alseg.networks.features import BottleneckFeatures
from alseg.scoring import passes, windows
from alseg.scoring.passes import dropout_passes
from alseg.scoring.plain_passes import stochastic_statistics
from alseg.scoring.sampled_passes import sampled_passes
from alseg.strategies.aggregations import mean
from alseg.strategies.measures import mutual_information, variance
from alseg.strategies.statistics import VoxelStatistics
from tests.networks.test_dropout import MODELS, build, mask_seed

INFERER = SlidingWindowInferer((32, 16, 16), sw_batch_size=3, overlap=0.25, mode="gaussian")


@pytest.fixture(scope="module", autouse=True)
def batches_as_the_inferer_says() -> Iterator[None]:
    """These volumes are small: a CPU would take each whole."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(windows, "VOXELS_AT_ONCE", 0)
        yield


def all_passes(*arguments: Any, **settings: Any) -> VoxelStatistics:
    *_, statistics = dropout_passes(*arguments, **settings)
    return statistics


def check_equal(
    statistics: VoxelStatistics, expected: VoxelStatistics, atol: float = 1e-5, rtol: float = 0
) -> None:
    assert statistics.n_passes == expected.n_passes
    for name in ("mean", "variance", "expected_entropy"):
        torch.testing.assert_close(
            getattr(statistics, name), getattr(expected, name), atol=atol, rtol=rtol
        )
    for measure in (variance, mutual_information):
        score = mean(measure(statistics), statistics)
        assert score == pytest.approx(mean(measure(expected), expected), abs=1e-5)


class Calls:
    """Counts the windows that go through a layer, or what stands for it on a CPU."""

    def __init__(self, layer: nn.Module) -> None:
        self.windows = 0
        self.layer = layer
        self.handle = register_module_forward_hook(self._count)

    def _count(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        if self.layer in (layer, getattr(layer, "convolution", None)):
            self.windows += len(output)


@pytest.fixture
def count() -> Iterator[Callable[[nn.Module], Calls]]:
    made: list[Calls] = []

    def counted(layer: nn.Module) -> Calls:
        made.append(Calls(layer))
        return made[-1]

    yield counted
    for calls in made:
        calls.handle.remove()


@pytest.mark.parametrize("model", MODELS)
def test_exact_and_leaves_the_network_bit_identical(
    model: str, caplog: pytest.LogCaptureFixture
) -> None:
    network = build(model)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.rand(1, 1, 40, 16, 14)  # two windows, padded
    with caplog.at_level(logging.INFO):
        statistics = all_passes(network, image, INFERER, 3, mask_seed)
    assert not caplog.records  # no network of conf/model falls back
    expected = stochastic_statistics(network, image, INFERER, 3, mask_seed)
    check_equal(statistics, expected)
    assert statistics.variance.max() > 1e-6
    assert not any(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("model", MODELS)
def test_the_part_before_the_first_dropout_runs_once(
    model: str, count: Callable[[nn.Module], Calls]
) -> None:
    network = build(model)
    image = torch.rand(1, 1, 40, 16, 14)
    all_passes(network, image, INFERER, 1, mask_seed)  # splits and checks the parts
    leaves = [m for m in network.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)]
    first, last = count(leaves[0]), count(leaves[-1])
    all_passes(network, image, INFERER, 4, mask_seed)
    assert first.windows == 2
    assert last.windows in (2, 4 * 2)  # MONAI's UNet holds its first shortcut last
    assert max(c.windows for c in (first, last)) <= 8


class Pooled(nn.Module):
    """Ways to go wrong: a branch on the data, dropout in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.dropout = nn.Dropout3d(0.5)
        self.last = nn.Conv3d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 100:
            return torch.cat([x, x], dim=1)
        return self.last(self.dropout(torch.relu(self.first(x))))


def test_a_network_that_cannot_be_traced_runs_whole_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    network, image = Pooled().eval(), torch.rand(1, 1, 40, 16, 14)
    with caplog.at_level(logging.INFO):
        statistics = all_passes(network, image, INFERER, 3, mask_seed)
        all_passes(network, image, INFERER, 3, mask_seed)
    assert [r.message for r in caplog.records] == [r.message for r in caplog.records][:1]
    assert "Pooled cannot be split at its first dropout" in caplog.text
    check_equal(statistics, stochastic_statistics(network, image, INFERER, 3, mask_seed))


class Specialised(nn.Module):
    """Tracing with a constant of its own: right for the windows of the example only."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout3d(0.5)
        self.last = nn.Conv3d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = 2.0 if torch.jit.isinstance(x, torch.Tensor) else 1.0
        return self.last(self.dropout(scale * x))


def test_a_traced_network_that_gives_other_numbers_is_not_trusted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network, image = Specialised().eval(), torch.rand(1, 1, 40, 16, 14)
    with caplog.at_level(logging.INFO):
        statistics = all_passes(network, image, INFERER, 2, mask_seed)
    assert "gives other numbers" in caplog.text
    check_equal(statistics, stochastic_statistics(network, image, INFERER, 2, mask_seed))


def test_another_inferer_runs_the_passes_itself() -> None:
    network, image = build("unet_tiny"), torch.rand(1, 1, 16, 16, 16)
    features = BottleneckFeatures(foreground=False)
    statistics = all_passes(network, image, SimpleInferer(), 2, mask_seed, features=features)
    check_equal(statistics, stochastic_statistics(network, image, SimpleInferer(), 2, mask_seed))
    assert features.vector().shape == (8,)


@pytest.mark.parametrize("model", MODELS)
def test_features_are_those_of_the_plain_way(model: str) -> None:
    network, image = build(model), torch.rand(1, 1, 40, 16, 14)
    fast, plain = (BottleneckFeatures(foreground=True) for _ in range(2))
    all_passes(network, image, INFERER, 2, mask_seed, features=fast)
    with plain.watching(network):
        stochastic_statistics(network, image, INFERER, 2, mask_seed)
    # 1e-3: DynUNet's instance norm, over two voxels here, blows rounding up
    torch.testing.assert_close(fast.vector(), plain.vector(), atol=1e-3, rtol=1e-3)


def test_features_of_a_bottleneck_before_the_first_dropout() -> None:
    network = build("unet_small")
    *_, last = active_dropout_layers(network)
    for layer in active_dropout_layers(network):
        layer.p = 0.1 if layer is last else 0.0
    image = torch.rand(1, 1, 40, 16, 14)
    fast, plain = (BottleneckFeatures(foreground=True) for _ in range(2))
    all_passes(network, image, INFERER, 2, mask_seed, features=fast)
    with plain.watching(network):
        stochastic_statistics(network, image, INFERER, 2, mask_seed)
    torch.testing.assert_close(fast.vector(), plain.vector(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_passes_share_batches_and_stay_the_same(
    batch: int, count: Callable[[nn.Module], Calls]
) -> None:
    network, image = build("unet_small"), torch.rand(1, 1, 16, 16, 16)
    inferer = SlidingWindowInferer(16, batch)  # one window a pass
    *_, last = (m for m in network.modules() if isinstance(m, nn.ConvTranspose3d))
    calls = count(last)
    after_each = [
        float(s.variance.sum()) for s in dropout_passes(network, image, inferer, 5, mask_seed)
    ]
    assert calls.windows >= 5
    expected = [
        float(stochastic_statistics(network, image, inferer, t, mask_seed).variance.sum())
        for t in range(1, 6)
    ]
    assert after_each == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_batches_have_one_size_and_end_with_a_pass() -> None:
    network, image = build("unet_tiny"), torch.rand(1, 1, 88, 16, 16)  # four windows, batches of 3
    sizes: list[int] = []
    *_, last = (m for m in network.modules() if isinstance(m, nn.ConvTranspose3d))
    all_passes(network, image, INFERER, 1, mask_seed)  # splits and checks the parts

    def see(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        if getattr(layer, "convolution", None) is last:
            sizes.append(len(output))

    handle = register_module_forward_hook(see)
    all_passes(network, image, INFERER, 3, mask_seed)
    handle.remove()
    assert sizes == [2] * 6


@pytest.mark.parametrize("gate", [None, 0.0, 0.3])
def test_a_cpu_takes_small_windows_together(
    gate: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, image = build("unet_small"), torch.rand(1, 1, 88, 16, 16)  # four windows, batches of 3
    batch_sizes: list[int] = []

    def made(at_least: int) -> VoxelStatistics:
        monkeypatch.setattr(windows, "VOXELS_AT_ONCE", at_least)
        batch_sizes.append(windows.sliding_windows(image, INFERER).batch_size)  # type: ignore[union-attr]
        if gate is None:
            return all_passes(network, image, INFERER, 3, mask_seed)
        *_, found = sampled_passes(network, image, INFERER, 3, mask_seed, gate)
        return found

    check_equal(made(2**17), made(0), atol=1e-6, rtol=0 if gate is None else 1e-5)
    assert batch_sizes == [2**17 // (32 * 16 * 16), 3]


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(*[st.integers(5, 24)] * 3),
    window=st.sampled_from([(8, 8, 8), (16, 8, 8), (8, 16, 24)]),
    overlap=st.floats(0, 0.7),
    batch=st.integers(1, 9),
    n_passes=st.integers(1, 4),
    gate=st.sampled_from([None, 0.0, 0.3]),
)
def test_scores_are_invariant_to_the_batch_size(
    size: tuple[int, int, int],
    window: tuple[int, int, int],
    overlap: float,
    batch: int,
    n_passes: int,
    gate: float | None,
) -> None:
    torch.manual_seed(0)
    network = UNet(3, 1, 3, channels=(4, 8), strides=(2,), dropout=0.3, norm="batch").eval()
    image = torch.randn(1, 1, *size)

    def statistics(batch: int) -> VoxelStatistics:
        inferer = SlidingWindowInferer(window, batch, overlap)
        if gate is None:
            return all_passes(network, image, inferer, n_passes, mask_seed)
        *_, found = sampled_passes(network, image, inferer, n_passes, mask_seed, gate)
        return found

    # behind a gate a window that is drawn counts 1 / probability times, and so does its rounding
    rtol = 0 if gate is None else 1e-5
    check_equal(statistics(batch), statistics(1), atol=1e-6, rtol=rtol)


def test_a_consumer_may_stop_and_no_hook_stays() -> None:
    network, image = build("unet_tiny"), torch.rand(1, 1, 48, 16, 16)
    stream: Iterator[VoxelStatistics] = iter(dropout_passes(network, image, INFERER, 50, mask_seed))
    assert next(stream).n_passes == 1
    assert not any(module._forward_hooks for module in network.modules())
    assert next(stream).n_passes == 2


def test_no_pass_is_made_ahead_for_a_consumer_that_may_stop(
    count: Callable[[nn.Module], Calls],
) -> None:
    network, image = build("unet_tiny"), torch.rand(1, 1, 16, 16, 16)
    inferer = SlidingWindowInferer(16, 8)  # one window a pass, eight a batch
    for ahead, expected in ((True, 8), (False, 2)):
        stream = iter(dropout_passes(network, image, inferer, 8, mask_seed, ahead=ahead))
        *_, last = (m for m in network.modules() if isinstance(m, nn.ConvTranspose3d))
        calls = count(last)
        next(stream)
        next(stream)
        assert calls.windows == expected


def test_activations_beyond_the_memory_limit_are_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, image = build("unet_small"), torch.rand(1, 1, 48, 16, 16)
    expected = all_passes(network, image, INFERER, 3, mask_seed)
    monkeypatch.setattr(passes, "KEPT_BYTES", 0)
    check_equal(all_passes(network, image, INFERER, 3, mask_seed), expected)
