"""Bottleneck features: pooled in the passes that score, of the deepest layer."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import BasicUNet, DynUNet, SegResNet, UNet
from torch import Tensor, nn

from alseg.networks.features import BottleneckFeatures
from alseg.scoring.plain_passes import stochastic_statistics


class Tiny(nn.Module):
    """An encoder that averages 2 x 2 x 2 blocks; its output is foreground where x > 0."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.AvgPool3d(2)
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        self.up(self.down(x))
        return torch.cat([torch.zeros_like(x), 1000 * x], dim=1)


def features_of(network: nn.Module, *windows: Tensor, foreground: bool = False) -> Tensor:
    features = BottleneckFeatures(foreground=foreground)
    with features.watching(network):
        for window in windows:
            network(window)
    return features.vector()


def test_mean_over_the_volume_by_hand() -> None:
    x = torch.arange(64.0).reshape(1, 1, 4, 4, 4)
    torch.testing.assert_close(features_of(Tiny(), x), x.double().mean().reshape(1))


def test_foreground_weighting_by_hand() -> None:
    x = torch.full((1, 1, 4, 4, 4), -1.0)
    x[:, :, :2] = 3.0  # half the volume is foreground, and the blocks there average 3
    torch.testing.assert_close(features_of(Tiny(), x, foreground=True).item(), 3.0)
    nowhere = torch.full((1, 1, 4, 4, 4), -1.0)
    assert features_of(Tiny(), nowhere, foreground=True).item() == pytest.approx(-1.0)


def test_windows_may_be_batched_in_any_way() -> None:
    x = torch.randn(6, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    together = features_of(Tiny(), x, foreground=True)
    torch.testing.assert_close(features_of(Tiny(), *x.split(1), foreground=True), together)
    torch.testing.assert_close(features_of(Tiny(), *x.split(4), foreground=True), together)


def test_hooks_are_removed() -> None:
    network = Tiny()
    features_of(network, torch.ones(1, 1, 4, 4, 4))
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_nothing_watched_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no pass"):
        BottleneckFeatures(foreground=False).vector()
    with pytest.raises(RuntimeError, match="no layer"):
        features_of(nn.Flatten(), torch.ones(1, 1, 4, 4, 4))


@pytest.mark.parametrize(
    ("network", "n_features"),
    [
        (UNet(3, 1, 3, channels=(4, 8, 16), strides=(2, 2), num_res_units=2, dropout=0.1), 16),
        (BasicUNet(3, 1, 3, features=(4, 4, 8, 8, 24, 4), norm="batch"), 24),
        (SegResNet(3, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,)), 16),
        (
            DynUNet(3, 1, 3, kernel_size=[3] * 3, strides=[1, 2, 2], upsample_kernel_size=[2, 2],
                    filters=[4, 8, 12]),
            12,
        ),
    ],
    ids=["unet", "basic_unet", "segresnet", "dynunet"],
)  # fmt: skip
def test_every_architecture_has_a_bottleneck(network: nn.Module, n_features: int) -> None:
    with torch.no_grad():
        assert features_of(network.eval(), torch.randn(1, 1, 32, 32, 32)).shape == (n_features,)


def test_features_come_from_the_passes_that_score() -> None:
    network = UNet(3, 1, 2, channels=(4, 8), strides=(2,), dropout=0.3).eval()
    calls = 0

    def count(module: nn.Module, inputs: object) -> None:
        nonlocal calls
        calls += 1

    network.register_forward_pre_hook(count)
    image = torch.randn(1, 1, 12, 8, 8, generator=torch.Generator().manual_seed(0))

    def seed(pass_index: int, window: int, layer: int) -> int:
        return 1000 * pass_index + 10 * window + layer

    def scored(batch: int) -> tuple[Tensor, Tensor]:
        inferer = SlidingWindowInferer((8, 8, 8), sw_batch_size=batch, overlap=0.5)
        features = BottleneckFeatures(foreground=True)
        with features.watching(network):
            statistics = stochastic_statistics(network, image, inferer, 3, seed)
        return statistics.variance, features.vector()

    variance, vector = scored(1)
    assert calls == 3 * 2  # passes x windows: no pass of its own
    other_variance, other_vector = scored(2)
    torch.testing.assert_close(other_variance, variance, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(other_vector, vector, atol=1e-6, rtol=1e-5)
