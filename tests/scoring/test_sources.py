"""Uncertainty sources on tiny deterministic networks."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import Tensor, nn

from alseg.core.errors import ConfigError
from alseg.networks.committee import Committee
from alseg.scoring.sources import (
    Ensemble,
    FlipAugmentation,
    MCDropout,
    UncertaintySource,
    plain_pass,
)
from alseg.scoring.svgd import SVGD

INFERER = SlidingWindowInferer(roi_size=(4, 4, 4), sw_batch_size=2, overlap=0.0)


class Prescribed(nn.Module):
    """Logits (0, w x): the same wherever the voxel lies, so flips must change nothing."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), self.weight * x], dim=1)


class Sided(nn.Module):
    """Sees foreground in the first half of each axis-0 line, whatever the image."""

    def forward(self, x: Tensor) -> Tensor:
        foreground = torch.full_like(x, -20.0)
        foreground[:, :, : x.shape[2] // 2] = 20.0
        return torch.cat([torch.zeros_like(x), foreground], dim=1)


def no_mask(pass_index: int, window: int, layer: int) -> int:
    raise AssertionError("this source draws no masks")


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 1, 8, 4, 6, generator=torch.Generator().manual_seed(0))


def test_ensemble_streams_over_members(image: Tensor) -> None:
    networks = [Prescribed(w) for w in (1.0, -2.0, 0.5)]
    statistics = Ensemble(3).statistics(networks, image, INFERER, no_mask)
    stack = torch.stack([plain_pass(n, image, INFERER) for n in networks])
    assert statistics.n_passes == 3
    torch.testing.assert_close(statistics.mean, stack.mean(0))
    torch.testing.assert_close(statistics.variance, stack.var(0, unbiased=False))


@pytest.mark.parametrize("source", [Ensemble(3), FlipAugmentation([0, 1]), SVGD(3)])
def test_a_pass_is_made_when_it_is_asked_for(source: UncertaintySource, image: Tensor) -> None:
    calls: list[nn.Module] = []
    members = [Prescribed(w) for w in (1.0, -2.0, 0.5)]
    for member in members:
        member.register_forward_hook(lambda module, *_: calls.append(module))
    networks: list[nn.Module] = {Ensemble: members, SVGD: [Committee(members)]}.get(
        type(source), members[:1]
    )
    stream = iter(source.stream(networks, image, SimpleInferer(), no_mask))
    assert calls == []
    for number in (1, 2, 3):
        assert next(stream).n_passes == number
        assert len(calls) == number
    whole = source.statistics(networks, image, SimpleInferer(), no_mask)
    assert whole.n_passes == (4 if isinstance(source, FlipAugmentation) else 3)


def test_a_source_says_what_a_round_trains() -> None:
    def make(number: int) -> nn.Module:
        return Prescribed(float(number))

    assert Ensemble(3).untrained(make).weight.item() == 1  # the others follow one after another
    committee = SVGD(3).untrained(make)
    assert isinstance(committee, Committee)
    assert [particle.weight.item() for particle in committee.particles] == [1, 2, 3]


def test_flips_are_undone_before_the_statistics(image: Tensor) -> None:
    network = Prescribed(1.5)
    statistics = FlipAugmentation([0, 1, 2]).statistics([network], image, INFERER, no_mask)
    assert statistics.n_passes == 8
    torch.testing.assert_close(statistics.mean, plain_pass(network, image, INFERER))
    assert statistics.variance.max() < 1e-12


def test_flips_show_what_depends_on_the_side() -> None:
    image = torch.zeros(1, 1, 4, 4, 4)
    sided = FlipAugmentation([0]).statistics([Sided()], image, INFERER, no_mask)
    torch.testing.assert_close(sided.variance, torch.full((2, 4, 4, 4), 0.25))
    other_axes = FlipAugmentation([1, 2]).statistics([Sided()], image, INFERER, no_mask)
    assert other_axes.variance.max() < 1e-12


def test_sources_refuse_bad_settings() -> None:
    for bad in (0, -1, 2.5, True, "three"):
        with pytest.raises(ConfigError, match=r"uncertainty\.n_passes"):
            MCDropout(bad)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="n_members"):
            Ensemble(bad)  # type: ignore[arg-type]
    for axes in ([3], [-1], [0, 0]):
        with pytest.raises(ConfigError, match="axes"):
            FlipAugmentation(axes)


def test_only_dropout_needs_dropout() -> None:
    network = Prescribed(1.0)
    with pytest.raises(ConfigError, match=r"model\.dropout"):
        MCDropout(2).check(network)
    Ensemble(2).check(network)
    FlipAugmentation([0]).check(network)
