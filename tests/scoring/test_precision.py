"""As many passes as the query needs: scores differ by volumes, not by masks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from alseg.scoring.precision import (
    BUDGET,
    FIRST_PASSES,
    FIRST_VOLUMES,
    Precision,
    share_of_pool,
)
from alseg.scoring.shrinkage import settled
from tests.scoring.pass_by_pass import running_means, scored

N_PASSES = 20


def pool(
    rng: np.random.Generator, n: int, spread: float, between: float
) -> tuple[np.ndarray, np.ndarray]:
    """Passes [n, T] of volumes that differ, and an expectation that says little of them [n]."""
    level = rng.lognormal(0, between, n)
    passes = level[:, None] * (1 + spread * rng.standard_normal((n, N_PASSES)))
    return passes, rng.lognormal(0, between, n)


@pytest.mark.parametrize(("spread", "expected"), [(0.02, 1), (0.1, 5), (0.15, 10)])
def test_noisier_passes_are_more(spread: float, expected: int) -> None:
    # a standard error of 0.3 / 6 = 0.05 is asked for
    passes, hints = pool(np.random.default_rng(0), 100, spread, 0.3)
    rule = Precision(N_PASSES)
    rows = zip(running_means(passes), hints, strict=True)
    found = [scored(rule, f"{i:03d}", row, hint) for i, (row, hint) in enumerate(rows)]
    taken = np.array([score.n_passes for score in found])
    assert (taken[:FIRST_VOLUMES] == FIRST_PASSES).all()
    assert abs(np.median(taken[FIRST_VOLUMES:]) - expected) <= 1
    scores = [score.score for score in settled(found)]
    assert kendalltau(scores, passes.mean(axis=1)).statistic > 0.85


def test_a_volume_whose_passes_differ_more_than_others_takes_more() -> None:
    passes, hints = pool(np.random.default_rng(1), 40, 0.06, 0.3)
    rule = Precision(N_PASSES)
    for i, row in enumerate(running_means(passes)):
        scored(rule, str(i), row, hints[i])
    steady, unsteady = np.ones(N_PASSES), np.tile([0.5, 1.5, 1.0, 0.2, 1.8], N_PASSES // 5)
    assert (scored(rule, "steady", running_means(steady), 1.0).n_passes or 0) <= 2
    assert (scored(rule, "unsteady", running_means(unsteady), 1.0).n_passes or 0) > 10


def test_passes_are_made_where_the_query_ends() -> None:
    rng = np.random.default_rng(2)
    passes, hints = pool(rng, 150, 0.3, 0.4)
    rule = Precision(N_PASSES, share=0.1)
    rows = zip(running_means(passes), hints, strict=True)
    found = [scored(rule, f"{i:03d}", row, hint, 0.3) for i, (row, hint) in enumerate(rows)]
    rank = np.argsort(np.argsort(-passes.mean(axis=1)))
    taken = np.array([score.n_passes for score in found])
    later = np.arange(150) >= 50
    assert taken[later & (rank > 80)].mean() < 1.5
    assert taken[later & (rank > 7) & (rank < 23)].mean() > 5
    best = np.argsort([-(score.score or 0) for score in settled(found)])[:15]
    assert (rank[best] < 15).mean() > 0.8


def test_dear_passes_keep_to_the_budget() -> None:
    passes, hints = pool(np.random.default_rng(3), 100, 0.3, 0.3)
    costs = {}
    for cost in (0.05, 0.7):
        rule = Precision(N_PASSES, share=0.2)
        rows = zip(running_means(passes), hints, strict=True)
        found = [scored(rule, f"{i:03d}", row, h, cost) for i, (row, h) in enumerate(rows)]
        costs[cost] = np.mean([score.plain_passes or 0 for score in found])
    assert costs[0.05] < costs[0.7] < 1.15 * BUDGET


def test_a_good_expectation_saves_passes() -> None:
    rng = np.random.default_rng(4)
    passes, _ = pool(rng, 100, 0.2, 0.3)
    taken = []
    for noise in (0.05, 0.5):
        hints = passes.mean(axis=1) * rng.lognormal(0, noise, 100)
        rule = Precision(N_PASSES)
        rows = zip(running_means(passes), hints, strict=True)
        taken.append(sum(scored(rule, str(i), r, h).n_passes or 0 for i, (r, h) in enumerate(rows)))
    assert taken[0] < 0.6 * taken[1]


def test_volumes_that_do_not_differ_take_all_passes() -> None:
    rule = Precision(N_PASSES)
    passes = 1 + 0.1 * np.random.default_rng(5).standard_normal((12, N_PASSES))
    hints = np.random.default_rng(6).lognormal(0, 1, 12)
    rows = zip(running_means(passes), hints, strict=True)
    taken = [scored(rule, str(i), row, hint).n_passes or 0 for i, (row, hint) in enumerate(rows)]
    assert max(taken[FIRST_VOLUMES:]) == N_PASSES
    zeros = Precision(3, share=0.5)
    taken = [scored(zeros, str(i), np.zeros(3), 0.0).n_passes or 0 for i in range(8)]
    assert taken == [FIRST_PASSES] * 8  # nothing is known of others
    same = Precision(3, share=0.5)
    taken = [scored(same, str(i), np.ones(3), 1.0).n_passes or 0 for i in range(8)]
    assert max(taken) <= 3


def test_a_query_that_takes_the_whole_pool_takes_one_pass_of_each() -> None:
    assert share_of_pool(None, 9) is None
    assert share_of_pool(3, 12) == 0.25
    assert share_of_pool(3, 0) == 0.5  # nothing is left to score
    passes, hints = pool(np.random.default_rng(7), 30, 0.3, 0.3)
    rule = Precision(N_PASSES, share_of_pool(40, 30))
    rows = zip(running_means(passes), hints, strict=True)
    taken = [scored(rule, str(i), row, h, 0.5).n_passes or 0 for i, (row, h) in enumerate(rows)]
    assert np.mean(taken[FIRST_VOLUMES:]) < 2


@pytest.mark.parametrize("share", [None, 0.2])
def test_scores_from_before_an_interruption_count(share: float | None) -> None:
    passes, hints = pool(np.random.default_rng(8), 30, 0.1, 0.3)
    rows = running_means(passes)
    rule, resumed = Precision(N_PASSES, share), Precision(N_PASSES, share)
    for i in range(15):
        resumed.observe(scored(rule, str(i), rows[i], hints[i]))
    for i in range(15, 30):
        assert scored(resumed, str(i), rows[i], hints[i]) == scored(rule, str(i), rows[i], hints[i])
