"""A network's graph as it is rewritten for a CPU: by its parts, against the network."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from alseg.networks.cpu_layout import LaidOut
from alseg.networks.dropout import MaskedDropout, active_dropout_layers
from alseg.networks.dropout_placement import place_dropout
from alseg.networks.shared_prefix import SplitNetwork, TwoParts, two_parts
from tests.networks.test_dropout import build, mask_seed

SIZE = (16, 16, 16)


def split(network: nn.Module, windows: Tensor) -> SplitNetwork:
    parts = two_parts(network, windows)
    assert isinstance(parts, SplitNetwork)
    return parts


def layers_of(part: nn.Module) -> list[LaidOut]:
    return [layer for layer in part.modules() if isinstance(layer, LaidOut)]


def masked(network: nn.Module, parts: TwoParts, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the parts and of the network under the same masks."""
    masks = MaskedDropout(mask_seed)
    masks.samples = [(0, window) for window in range(len(windows))]
    activations = parts.head(windows)
    with masks.attached_to(network, parts.exclusive):
        ours = parts.tail(activations, None)
    with masks.attached_to(network):
        return ours, network(windows)


class Dense(nn.Module):
    """Concatenations of two, three and only varying pieces, with a norm behind the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 6, 3, padding=1)
        self.dropout = nn.Dropout(0.4)
        self.two = nn.Conv3d(10, 5, 3, padding=1)
        self.norm = nn.BatchNorm3d(5)
        self.three = nn.ConvTranspose3d(4 + 5 + 6, 3, 3, 2, 1, output_padding=1)
        self.varying = nn.Conv3d(10, 3, 1)
        nn.init.uniform_(self.norm.running_mean, -0.2, 0.2)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        still = torch.relu(self.first(x))
        more = self.second(still)
        moving = self.norm(self.two(torch.cat([still, self.dropout(more)], dim=1)))
        up = self.three(torch.cat((still, moving, more), 1))
        varying = self.varying(torch.cat([moving, moving], dim=1))
        return up + nn.functional.interpolate(varying, scale_factor=2)


def test_a_convolution_is_split_where_some_of_its_channels_do_not_vary() -> None:
    torch.manual_seed(0)
    network, windows = Dense().eval(), torch.rand(2, 1, *SIZE)
    with torch.no_grad():
        parts = split(network, windows)
        still, varying = layers_of(parts._head), layers_of(parts._tail)
        found = {
            layer: [part for part in (*still, *varying) if part.convolution is layer]
            for layer in (network.two, network.three, network.varying)
        }
        assert [len(layers) for layers in found.values()] == [2, 2, 1]
        assert len(still) == 4  # the first two layers, and the still halves
        # 4 + 6 still channels of the third layer, 5 varying ones
        assert sorted(layer.plain.shape[0] for layer in found[network.three]) == [5, 10]
        ours, expected = masked(network, parts, windows)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("placement", ["all", "decoder"])
def test_split_layers_take_in_weights_that_change(placement: str) -> None:
    network, windows = build("unet_small"), torch.rand(2, 1, *SIZE)
    place_dropout(network, placement, 1, SIZE)
    with torch.no_grad():
        parts = split(network, windows)
        both = layers_of(parts._head), layers_of(parts._tail)
        shared = {layer.convolution for layer in both[0]} & {layer.convolution for layer in both[1]}
        assert len(shared) == {"all": 0, "decoder": 2}[placement]
        for parameter in network.parameters():
            parameter.mul_(1.3)
        ours, expected = masked(network, split(network, windows), windows)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_the_last_residual_unit_adds_its_input_in_the_kernel() -> None:
    network, windows = build("unet_small"), torch.rand(2, 1, *SIZE)
    with torch.no_grad():
        adding = [layer for layer in layers_of(split(network, windows)._tail) if layer.adds_input]
    (last,) = adding
    assert last.convolution.out_channels == 3
    assert last.convolution.in_channels == 3


class ReadTwice(nn.Module):
    """Activations, sums and dropout whose inputs are read a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1)
        self.dropout, self.unused = nn.Dropout(0.4), nn.Dropout(0.0)
        self.prelu, self.relu = nn.PReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        head = self.first(x)
        dropped = self.dropout(head)
        one = self.prelu(self.unused(dropped))
        two = self.second(dropped)
        three = self.relu(two)
        return (two + one) + (three + self.dropout(two)) + head


def test_what_is_read_twice_is_not_overwritten() -> None:
    torch.manual_seed(0)
    network, windows = ReadTwice().eval(), torch.randn(2, 1, *SIZE)
    with torch.no_grad():
        parts = split(network, windows)
        assert not parts.exclusive
        activations = parts.head(windows)
        before = [a.clone() for a in activations]
        plain = parts.tail(activations, None)
        assert all(map(torch.equal, before, activations))
        torch.testing.assert_close(plain, network(windows), atol=1e-5, rtol=1e-5)
        ours, expected = masked(network, parts, windows)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


class Overwriting(nn.Module):
    """Its tail writes into what the head hands over, as long as no mask is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dropout = nn.Conv3d(1, 3, 3, padding=1), nn.Dropout(0.4)
        self.relu = nn.LeakyReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.dropout(self.first(x)))


@pytest.mark.parametrize(
    ("network", "leaves_input"),
    [(Overwriting(), False), (UNet(3, 1, 3, (4, 8), (2,), dropout=0.3), True)],
)
def test_a_tail_that_overwrites_its_input_is_known(network: nn.Module, leaves_input: bool) -> None:
    windows = torch.randn(2, 1, *SIZE)
    with torch.no_grad():
        assert split(network.eval(), windows).leaves_input == leaves_input
    assert active_dropout_layers(network)
