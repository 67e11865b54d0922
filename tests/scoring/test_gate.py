"""Skipped windows: what they may cost at most, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from alseg.core.errors import ConfigError
from alseg.networks.dropout import MaskedDropout, MaskSeed
from alseg.scoring.gate import windows_to_keep
from alseg.scoring.passes import dropout_passes
from alseg.scoring.plain_passes import stochastic_statistics
from alseg.scoring.sources import MCDropout
from alseg.scoring.windows import sliding_windows
from alseg.strategies.measures import entropy, expected_entropy, mutual_information, variance
from alseg.strategies.statistics import BoxStatistics, VoxelStatistics, entropy_of, single_pass
from tests.networks.test_dropout import build, mask_seed

INFERER = SlidingWindowInferer((16, 16, 16), sw_batch_size=2, overlap=0.25)


def gated(
    network: nn.Module, image: Tensor, n_passes: int, seed: MaskSeed, gate: float
) -> VoxelStatistics:
    *_, statistics = dropout_passes(network, image, INFERER, n_passes, seed, gate=gate)
    return statistics


class Unsure(nn.Module):
    """Foreground probability q, or q ± doubt when its only dropout keeps or drops.

    The doubt, min(q, 1 - q) / 2, sits where the image says so; p_det = q.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout3d(0.5)

    def forward(self, x: Tensor) -> Tensor:
        side = self.dropout(torch.ones_like(x[:, :, :1, :1, :1])) - 1  # 0, or -1 and 1
        q = 0.5 * x.clamp(2e-5, 1)
        p = q + side * q / 2
        return torch.cat([torch.log(1 - p), torch.log(p)], dim=1)


def opposite_masks(pass_index: int, window: int, layer: int) -> int:
    """Seeds with which a single unit is kept in even passes and dropped in odd ones."""
    unit = nn.Dropout3d(0.5).eval()
    for seed in range(1000 * window, 1000 * window + 100):
        masks = MaskedDropout(lambda *names, seed=seed: seed)
        masks.samples = [(0, 0)]
        with masks.attached_to(unit):
            is_kept = bool(unit(torch.ones(1, 1, 1, 1, 1)).item())
        if is_kept == (pass_index % 2 == 0):
            return seed
    raise AssertionError("no such seed")


@pytest.fixture
def lopsided() -> Tensor:
    """Mostly sure; unsure in one corner, a little in the middle."""
    generator = torch.Generator().manual_seed(0)
    image = 1e-4 * torch.rand(1, 1, 76, 28, 16, generator=generator)
    image[..., :14, :10, :] = torch.rand(14, 10, 16, generator=generator)
    image[..., 20:30, 12:20, :] = 0.05
    return image


@pytest.mark.parametrize("gate", [0.01, 0.05, 0.2, 0.6])
def test_no_more_is_lost_than_the_gate_allows(lopsided: Tensor, gate: float) -> None:
    network = Unsure().eval()
    full = stochastic_statistics(network, lopsided, INFERER, 2, opposite_masks)
    part = gated(network, lopsided, 2, opposite_masks, gate)
    assert part.n_passes == 2
    torch.testing.assert_close(part.mean, full.mean, atol=0.02, rtol=0)  # the premise, nearly
    allowed = gate * float(entropy(full).sum())
    for measure in (variance, mutual_information, expected_entropy):
        lost = float(measure(full).sum() - measure(part).sum())
        assert abs(lost) <= allowed, measure.__name__
    assert float(variance(part).sum()) > 0
    assert int((variance(part) == 0).sum()) > int((variance(full) == 0).sum())


def test_a_wider_gate_keeps_fewer_windows_and_0_keeps_all(lopsided: Tensor) -> None:
    windows = sliding_windows(lopsided, INFERER)
    assert windows is not None
    probabilities = 0.5 * lopsided[0, 0].clamp(2e-5, 1)
    doubt = entropy_of(torch.stack([probabilities, 1 - probabilities]))
    n_kept = [len(windows_to_keep(windows, doubt, gate)) for gate in (0, 0.01, 0.1, 0.6, 0.999)]
    assert n_kept[0] == len(windows.boxes)
    assert n_kept == sorted(n_kept, reverse=True)
    assert n_kept[1] < n_kept[0]
    assert n_kept[-1] == 1
    nothing = windows_to_keep(windows, torch.zeros_like(doubt), 0.5)
    assert list(nothing) == list(range(len(windows.boxes)))  # none of them has less than another


def test_skipping_all_but_one_window_counts_each_voxel_once() -> None:
    """Without overlap, the loss is the sum of the skipped windows' entropy."""
    doubt = torch.zeros(32, 16, 16)
    doubt[0, 0, 0], doubt[20, 0, 0] = 1.0, 3.0
    windows = sliding_windows(doubt[None, None], SlidingWindowInferer(16, overlap=0.0))
    assert windows is not None
    assert windows_to_keep(windows, doubt, 0.24) == [0, 1]
    assert windows_to_keep(windows, doubt, 0.26) == [1]


def test_gate_0_is_exact() -> None:
    network, image = build("unet_small"), torch.rand(1, 1, 36, 16, 14)
    exact = stochastic_statistics(network, image, INFERER, 3, mask_seed)
    statistics = gated(network, image, 3, mask_seed, 0.0)
    for name in ("mean", "variance", "expected_entropy"):
        torch.testing.assert_close(
            getattr(statistics, name), getattr(exact, name), atol=1e-5, rtol=0
        )
    assert torch.equal(statistics.votes, exact.votes)


def test_kept_windows_use_their_own_masks_and_skipped_ones_stay(lopsided: Tensor) -> None:
    network = Unsure().eval()
    full = stochastic_statistics(network, lopsided, INFERER, 3, mask_seed)
    part = gated(network, lopsided, 3, mask_seed, 0.3)
    # the corner is covered by the first window only, the far end by windows that are skipped
    corner = (slice(None), slice(0, 10), slice(0, 10), slice(None))
    torch.testing.assert_close(part.variance[corner], full.variance[corner])
    assert not part.variance[:, 40:].any()
    torch.testing.assert_close(
        part.expected_entropy[40:], entropy_of(part.mean[:, 40:]), atol=1e-6, rtol=0
    )
    assert (part.votes.sum(0) == 3).all()


def test_box_statistics_are_those_of_whole_volumes() -> None:
    generator = torch.Generator().manual_seed(0)
    still = torch.softmax(torch.randn(3, 6, 5, 4, generator=generator), dim=0)
    box = (slice(1, 4), slice(0, 5), slice(2, 4))
    boxed, whole = BoxStatistics(still, box), VoxelStatistics()
    for _ in range(4):
        probabilities = still.clone()
        inside = torch.softmax(torch.randn(3, 3, 5, 2, generator=generator), dim=0)
        probabilities[(slice(None), *box)] = inside
        boxed.update(inside)
        whole.update(probabilities)
        for name in ("mean", "variance", "expected_entropy", "votes", "prediction"):
            torch.testing.assert_close(
                getattr(boxed, name), getattr(whole, name), atol=1e-6, rtol=1e-5
            )


def test_statistics_of_a_single_pass_are_those_of_an_update() -> None:
    probabilities = torch.softmax(torch.randn(3, 6, 5, 4), dim=0)
    single, updated = single_pass(probabilities), VoxelStatistics()
    updated.update(probabilities)
    assert single.n_passes == updated.n_passes == 1
    for name in ("mean", "variance", "expected_entropy", "votes", "prediction"):
        assert torch.equal(getattr(single, name), getattr(updated, name)), name


@pytest.mark.parametrize("bad", [-0.1, 1, 1.5, "half", True])
def test_a_bad_gate_is_refused(bad: object) -> None:
    with pytest.raises(ConfigError, match=r"uncertainty\.gate is"):
        MCDropout(2, gate=bad)  # type: ignore[arg-type]
