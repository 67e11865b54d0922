"""Features of regions: the bottleneck over the region, with the window around it as context."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets import UNet
from torch import nn

from alseg.networks.features import BottleneckFeatures
from alseg.scoring.region_features import region_features
from alseg.scoring.sources import plain_pass


class Pooling(nn.Module):
    """A network whose bottleneck is the image itself, averaged over cubes of 4 voxels."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.AvgPool3d(4), nn.Upsample(scale_factor=4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        coarse = self.up(self.down(image))
        return torch.cat([coarse, -coarse], dim=1)


def box_of(*edges: tuple[int, int]) -> tuple[slice, slice, slice]:
    first, second, third = (slice(*edge) for edge in edges)
    return first, second, third


@pytest.mark.parametrize("inferer", [SlidingWindowInferer((16, 16, 16)), SimpleInferer()])
def test_a_box_of_whole_cubes_has_the_mean_of_its_voxels(inferer: SimpleInferer) -> None:
    image = torch.rand(1, 1, 24, 16, 16, generator=torch.Generator().manual_seed(0))
    features_of = region_features(Pooling(), image, inferer, foreground=False)
    for box in (box_of((0, 8), (4, 8), (0, 16)), box_of((8, 16), (0, 16), (8, 12))):
        assert features_of(box).tolist() == pytest.approx(
            [float(image[0, 0][box].mean())], rel=1e-5
        )


def test_the_whole_volume_has_the_features_of_the_volume() -> None:
    torch.manual_seed(0)
    network = UNet(3, 1, 2, (4, 8), (2,), num_res_units=0).eval()
    image, inferer = torch.rand(1, 1, 16, 16, 16), SlidingWindowInferer((16, 16, 16))
    for foreground in (False, True):
        whole = BottleneckFeatures(foreground=foreground)
        with whole.watching(network):
            plain_pass(network, image, inferer)
        features_of = region_features(network, image, inferer, foreground=foreground)
        found = features_of(box_of((0, 16), (0, 16), (0, 16)))
        assert found.tolist() == pytest.approx(whole.vector().tolist(), rel=1e-5)


def test_a_region_larger_than_a_window_is_averaged_over_its_windows() -> None:
    image = torch.rand(1, 1, 32, 8, 8, generator=torch.Generator().manual_seed(1))
    inferer = SlidingWindowInferer((8, 8, 8), overlap=0)
    features_of = region_features(Pooling(), image, inferer, foreground=False)
    box = box_of((0, 32), (0, 8), (0, 4))
    assert features_of(box).tolist() == pytest.approx([float(image[0, 0][box].mean())], rel=1e-5)
