"""Racing: the same top k as all passes, with fewer of them, at a stated error rate."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from alseg.scoring.racing import Race, n_top_needed, pseudo_values
from alseg.strategies.selectors.diverse import k_center
from alseg.strategies.selectors.noisy import power
from alseg.strategies.selectors.ranked import prefilter, top_k
from tests.scoring.pass_by_pass import running_means, scored

N_PASSES = 10


def simulated_pool(
    rng: np.random.Generator, n: int, spread: float, between: float, biased: bool
) -> np.ndarray:
    """Scores [n, T] of volumes that differ; gamma increments, the first 0 as a variance's."""
    level = rng.lognormal(0, between, n)
    own_spread = spread * rng.lognormal(0, 0.3, n)  # volumes do not share one
    shape = 1 / own_spread[:, None] ** 2
    increments = level[:, None] * rng.gamma(shape, 1 / shape, (n, N_PASSES))
    increments[:, 0] = 0 if biased else increments[:, 0]
    return running_means(increments)


def run(race: Race, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicted scores [n] and passes taken [n]."""
    found = [scored(race, f"{i:03d}", row) for i, row in enumerate(scores)]
    return np.array([r.score for r in found]), np.array([r.n_passes for r in found])


def best(scores: np.ndarray, k: int) -> set[int]:
    return set(np.argsort(-scores, kind="stable")[:k].tolist())


def test_pseudo_values_have_the_score_as_their_mean() -> None:
    scores = [0.0, 1.0, 1.5, 3.0]
    values = pseudo_values(scores)
    np.testing.assert_allclose(values, [2.0, 2.5, 7.5])
    assert (0.0 + values.sum()) / 4 == pytest.approx(3.0)


def test_only_volumes_far_below_the_query_are_stopped() -> None:
    rng = np.random.default_rng(0)
    noise = 1 + 0.1 * rng.standard_normal((40, N_PASSES))
    scores = running_means(np.repeat([10.0, 1.0], 20)[:, None] * noise)
    predicted, passes = run(Race(5, N_PASSES, 0.05), scores)
    assert passes[:5].tolist() == [N_PASSES] * 5  # nothing to compare with yet
    assert (passes[20:] == 2).all()
    assert best(predicted, 5) == best(scores[:, -1], 5)
    np.testing.assert_allclose(predicted[20:], 1.0, atol=0.3)
    full = passes == N_PASSES
    assert np.array_equal(predicted[full], scores[full, -1])  # exactly


@pytest.mark.parametrize(
    ("spread", "between", "biased"), [(0.1, 0.2, True), (0.2, 0.5, False), (0.4, 0.3, True)]
)
def test_the_error_rate_holds(spread: float, between: float, biased: bool) -> None:
    rng = np.random.default_rng(1)
    n_pools, wrong, passes_taken = 60, 0, 0.0
    for _ in range(n_pools):
        scores = simulated_pool(rng, 40, spread, between, biased)
        predicted, passes = run(Race(5, N_PASSES, 0.05), scores)
        wrong += best(predicted, 5) != best(scores[:, -1], 5)
        passes_taken += passes.mean() / n_pools
    assert wrong / n_pools <= 0.05, (wrong, passes_taken)
    assert passes_taken < N_PASSES


def test_a_looser_error_rate_saves_more() -> None:
    scores = simulated_pool(np.random.default_rng(2), 200, 0.2, 0.3, True)
    taken = [run(Race(5, N_PASSES, rate), scores)[1].sum() for rate in (0.001, 0.05, 0.5)]
    assert taken[0] > taken[1] > taken[2]


def test_scores_from_before_an_interruption_count() -> None:
    scores = simulated_pool(np.random.default_rng(3), 40, 0.1, 0.3, True)
    race, resumed = Race(3, N_PASSES, 0.05), Race(3, N_PASSES, 0.05)
    before = [scored(race, str(i), scores[i]) for i in range(20)]
    assert any(score.n_passes != N_PASSES for score in before)
    for score in before:
        resumed.observe(score)
    # the rest of the race is the same, to the last pass
    for i in range(20, 40):
        assert scored(resumed, str(i), scores[i]) == scored(race, str(i), scores[i])


def test_volumes_that_score_0_are_no_special_case() -> None:
    scores = np.zeros((20, N_PASSES))
    predicted, passes = run(Race(2, N_PASSES, 0.05), scores)
    assert not predicted.any()
    assert (passes == N_PASSES).all()  # none is below another


def test_few_passes_are_all_made() -> None:
    for n_passes in (1, 2):
        found = scored(Race(1, n_passes, 0.05), "a", np.array([1.0, 2.0]))
        assert found.n_passes == n_passes


def test_what_selectors_need() -> None:
    assert n_top_needed(top_k, 5) == 5
    assert n_top_needed(partial(top_k), 5) == 5
    assert n_top_needed(partial(prefilter, multiple=3, then=k_center), 5) == 15
    assert n_top_needed(partial(power, beta=1.0), 5) is None
