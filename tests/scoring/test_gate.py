"""A sample of windows stands for all of them: without bias, and for less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from alseg.core.errors import ConfigError
from alseg.networks.dropout import MaskSeed
from alseg.scoring import windows
from alseg.scoring.gate import chances, drawn, expectation, sensitivity
from alseg.scoring.plain_passes import stochastic_statistics
from alseg.scoring.precision import Precision
from alseg.scoring.sampled_passes import sampled_passes
from alseg.scoring.scorer import Scoring, mask_seed_of
from alseg.scoring.sources import MCDropout
from alseg.scoring.windows import sliding_windows
from alseg.strategies.aggregations import mean
from alseg.strategies.measures import mutual_information, variance
from alseg.strategies.selectors.ranked import top_k
from alseg.strategies.statistics import SampledStatistics, VoxelStatistics, single_pass
from alseg.strategies.strategy import CaseScore, Measure, Strategy
from tests.networks.test_dropout import build, mask_seed

INFERER = SlidingWindowInferer((16, 16, 16), sw_batch_size=2, overlap=0.25, mode="gaussian")


class Unsure(nn.Module):
    """Logits as far from 0 as the image says, which a single unit of dropout moves a little."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout3d(0.5)

    def forward(self, x: Tensor) -> Tensor:
        side = self.dropout(torch.ones_like(x[:, :, :1, :1, :1])) - 1  # 0, or -1 and 1
        logit = x + 0.1 * side
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


@pytest.fixture
def lopsided() -> Tensor:
    """Mostly sure; unsure in one corner, less so in the middle and at the far end."""
    image = torch.full((1, 1, 76, 28, 16), -4.5)
    image[..., :14, :10, :] = 0.5
    image[..., 30:40, 12:20, :] = -2.0
    image[..., 60:, 20:, :] = -3.0
    return image


def sampled(
    network: nn.Module, image: Tensor, n_passes: int, seed: MaskSeed, gate: float
) -> VoxelStatistics:
    *_, statistics = sampled_passes(network, image, INFERER, n_passes, seed, gate)
    return statistics


def test_sensitivity_is_the_variance_or_information_under_small_noise() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: z.softmax(0), logits)  # [3, 5, 3, 5]
    expected = [jacobian[1:, v, :, v].square().sum() for v in range(5)]
    still = logits.softmax(0)
    torch.testing.assert_close(sensitivity(still), torch.stack(expected))
    noisy = (logits + 0.01 * torch.randn(20000, 3, 5, dtype=torch.float64)).softmax(1)
    surer = (noisy * (noisy / still).log()).sum(1).mean(0) / 0.01**2
    torch.testing.assert_close(sensitivity(still, of_information=True), surer, rtol=0.05, atol=0)


def test_windows_are_drawn_with_their_probabilities() -> None:
    probabilities = np.array([1.0, 0.7, 0.02, 0.4, 1.0, 0.13, 0.7])
    rng = np.random.default_rng(0)
    draws = [drawn(probabilities, start) for start in rng.random(4000)]
    counts = np.bincount(np.concatenate(draws), minlength=7) / len(draws)
    np.testing.assert_allclose(counts, probabilities, atol=0.03)
    assert {len(draw) for draw in draws} == {3, 4}  # of 3.95
    assert drawn(np.ones(5), 0.0) == drawn(np.ones(5), 0.999) == [0, 1, 2, 3, 4]


def test_a_wider_gate_draws_fewer_windows_and_0_runs_all() -> None:
    shares = np.random.default_rng(0).lognormal(0, 2, 60)
    shares /= shares.sum()
    expected = [chances(shares, gate).sum() for gate in (0, 0.05, 0.2, 0.6, 0.99)]
    assert expected[0] == 60
    assert expected == sorted(expected, reverse=True)
    assert (chances(shares, 0.3) > 0).all()
    optional = chances(shares, 0.3) < 1
    assert shares[optional].sum() <= 0.3
    np.testing.assert_allclose(chances(np.full(4, 0.25), 0.5), 1)  # none has less than another


def test_a_volume_that_is_sure_everywhere_runs_all_windows() -> None:
    image = torch.zeros(1, 1, 40, 16, 16)
    all_windows = sliding_windows(image, INFERER)
    assert all_windows is not None
    expected, shares = expectation(all_windows, torch.zeros(40, 16, 16))
    assert not expected.any()
    np.testing.assert_allclose(chances(shares, 0.5), 1)


@pytest.mark.parametrize(
    ("measure", "kept"), [(variance, {"variance"}), (mutual_information, {"expected_entropy"})]
)
def test_the_mean_over_draws_is_that_of_all_windows(
    lopsided: Tensor, measure: Measure, kept: set[str]
) -> None:
    network = Unsure().eval()

    def score(draw: int, gate: float, n_passes: int) -> float:
        *_, found = sampled_passes(
            network, lopsided, INFERER, n_passes, mask_seed_of(draw, 1, "case"), gate, kept
        )
        return float(measure(found).sum())

    exact = score(0, 0.0, 40)
    scores = [score(draw, 0.6, 1) for draw in range(120)]
    error = np.std(scores, ddof=1) / len(scores) ** 0.5
    assert 0 < error < 0.05 * exact
    assert abs(np.mean(scores) - exact) < 3 * error


def test_all_windows_have_the_variance_of_whole_passes(lopsided: Tensor) -> None:
    network = Unsure().eval()
    whole = stochastic_statistics(network, lopsided, INFERER, 60, mask_seed)
    part = sampled(network, lopsided, 60, mask_seed, 0.0)
    assert part.n_passes == 60
    for measure in (variance, mutual_information):
        torch.testing.assert_close(measure(part).sum(), measure(whole).sum(), rtol=0.05, atol=0)
    # where one window covers all, voxel by voxel; the mean of the passes is nearly the prediction
    corner = (slice(0, 10), slice(0, 10), slice(None))
    torch.testing.assert_close(variance(part)[corner], variance(whole)[corner], rtol=0.1, atol=1e-6)


def test_a_trained_network_has_nearly_the_variance_of_whole_passes() -> None:
    network, image = build("unet_small"), torch.rand(1, 1, 36, 16, 14)
    whole = stochastic_statistics(network, image, INFERER, 12, mask_seed)
    part = sampled(network, image, 12, mask_seed, 0.0)
    second_moment = whole.variance + (whole.mean - part.mean).square()
    torch.testing.assert_close(part.variance[1:].sum(), second_moment[1:].sum(), rtol=0.1, atol=0)


def test_passes_are_those_of_all_windows_where_a_window_is_drawn(lopsided: Tensor) -> None:
    network = Unsure().eval()
    full = sampled(network, lopsided, 3, mask_seed, 0.0)
    part = sampled(network, lopsided, 3, mask_seed, 0.3)
    corner = (slice(None), slice(0, 10), slice(0, 10), slice(None))
    torch.testing.assert_close(part.variance[corner], full.variance[corner])
    assert int((variance(part) == 0).sum()) > int((variance(full) == 0).sum())


def test_what_passes_cost_counts_the_deterministic_one(lopsided: Tensor) -> None:
    network = Unsure().eval()
    passes = sampled_passes(network, lopsided, INFERER, 4, mask_seed, 0.0)
    list(passes)
    assert passes.cost(4) == 5
    passes = sampled_passes(network, lopsided, INFERER, 4, mask_seed, 0.5)
    list(passes)
    assert 1 < passes.cost(1) < passes.cost(4) < 4


def test_passes_of_few_windows_are_made_together_and_stay_the_same(lopsided: Tensor) -> None:
    network = Unsure().eval()

    def passes_with(batch: int) -> tuple[int, list[tuple[float, float]]]:
        inferer = SlidingWindowInferer(16, batch, 0.25, mode="gaussian")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(windows, "VOXELS_AT_ONCE", 0)
            passes = sampled_passes(network, lopsided, inferer, 7, mask_seed, 0.5)
        after_each = [(float(variance(s).sum()), passes.cost(s.n_passes)) for s in passes]
        return passes.together, after_each

    one_by_one, expected = passes_with(1)
    together, found = passes_with(10)
    assert one_by_one == 1
    assert 1 < together < 7
    assert len(found) == 7
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_volume_is_left_only_when_the_passes_made_together_are_used(
    lopsided: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Decided(Precision):
        def is_decided(self, so_far: CaseScore) -> bool:
            asked.append(so_far.n_passes)
            return so_far.n_passes == 10 or len(asked) == 2

    asked: list[int | None] = []
    monkeypatch.setattr(windows, "VOXELS_AT_ONCE", 10 * 16**3)
    strategy = Strategy("variance", top_k, variance, mean)
    scoring = Scoring(strategy, MCDropout(10, 0.5, "adaptive"), INFERER, 1, 1)
    found = scoring.score_until_decided(Decided(10), Unsure().eval(), lopsided, "case")
    (first, second) = asked
    assert first is not None
    assert first > 1
    assert found.n_passes == second == min(2 * first, 10)


def test_windows_that_reach_over_the_edge_count_inside_only() -> None:
    network, image = build("unet_small"), torch.rand(1, 1, 20, 12, 9)
    part = sampled(network, image, 2, mask_seed, 0.0)
    assert part.variance.shape[1:] == image.shape[2:]
    assert float(part.variance.sum()) > 0


def test_sampled_statistics_are_about_the_deterministic_prediction() -> None:
    generator = torch.Generator().manual_seed(0)
    still, first, second = (
        torch.softmax(torch.randn(3, 6, 5, 4, generator=generator), dim=0) for _ in range(3)
    )
    everywhere = (slice(None),) * 3
    statistics = SampledStatistics(still)
    for probabilities in (first, second):
        statistics.add(everywhere, probabilities.clone(), 2.0)
        statistics.end_pass()
    expected = (first - still).square() + (second - still).square()  # 2 times, of 2 passes
    torch.testing.assert_close(statistics.variance, expected)
    surer = sum((p * (p / still).log()).sum(dim=0) for p in (first, second))
    torch.testing.assert_close(
        mutual_information(statistics), torch.as_tensor(surer), atol=1e-5, rtol=1e-4
    )
    assert torch.equal(statistics.mean, still)
    assert (statistics.votes.sum(dim=0) == 2).all()


def test_statistics_of_a_single_pass_are_those_of_an_update() -> None:
    probabilities = torch.softmax(torch.randn(3, 6, 5, 4), dim=0)
    single, updated = single_pass(probabilities), VoxelStatistics()
    updated.update(probabilities)
    assert single.n_passes == updated.n_passes == 1
    for name in ("mean", "variance", "expected_entropy", "votes", "prediction"):
        assert torch.equal(getattr(single, name), getattr(updated, name)), name


def test_draws_depend_on_the_case_and_the_round_only() -> None:
    network, image = build("unet_small"), torch.rand(1, 1, 60, 16, 14)
    scores = {
        name: float(variance(sampled(network, image, 1, mask_seed_of(1, r, name[0]), 0.8)).sum())
        for name, r in (("a1", 1), ("a2", 2), ("b1", 1))
    }
    again = float(variance(sampled(network, image, 1, mask_seed_of(1, 1, "a"), 0.8)).sum())
    assert again == scores["a1"]
    assert len(set(scores.values())) == 3


@pytest.mark.parametrize("bad", [-0.1, 1, 1.5, "half", True])
def test_a_bad_gate_is_refused(bad: object) -> None:
    with pytest.raises(ConfigError, match=r"uncertainty\.gate is"):
        MCDropout(2, gate=bad)  # type: ignore[arg-type]
