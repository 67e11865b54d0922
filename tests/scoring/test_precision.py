"""As many passes as the ranking needs: scores differ by volumes, not by masks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from alseg.scoring.precision import FIRST_PASSES, FIRST_VOLUMES, Precision
from tests.scoring.pass_by_pass import running_means, scored

N_PASSES = 20


def pool(rng: np.random.Generator, n: int, spread: float, between: float) -> np.ndarray:
    """Passes [n, T] of volumes that differ."""
    level = rng.lognormal(0, between, n)
    return level[:, None] * (1 + spread * rng.standard_normal((n, N_PASSES)))


@pytest.mark.parametrize(("spread", "expected"), [(0.02, 1), (0.1, 4), (0.15, 8)])
def test_noisier_passes_are_more(spread: float, expected: int) -> None:
    # a standard error of 0.3 / 6 = 0.05 is asked for
    passes = pool(np.random.default_rng(0), 200, spread, 0.3)
    rule = Precision(N_PASSES)
    found = [scored(rule, str(i), running_means(row)) for i, row in enumerate(passes)]
    taken = np.array([score.n_passes for score in found])
    assert (taken[:FIRST_VOLUMES] == FIRST_PASSES).all()
    assert abs(np.median(taken[FIRST_VOLUMES:]) - expected) <= 1
    exact = passes.mean(axis=1)
    assert kendalltau([score.score for score in found], exact).statistic > 0.85


def test_a_volume_whose_passes_differ_more_than_others_takes_more() -> None:
    rng = np.random.default_rng(1)
    passes = pool(rng, 40, 0.06, 0.3)  # one pass says nothing of a volume's own spread
    rule = Precision(N_PASSES)
    for i, row in enumerate(passes):
        scored(rule, str(i), running_means(row))
    steady, unsteady = np.ones(N_PASSES), np.tile([0.5, 1.5, 1.0, 0.2, 1.8], N_PASSES // 5)
    assert scored(rule, "steady", running_means(steady)).n_passes == 2
    assert (scored(rule, "unsteady", running_means(unsteady)).n_passes or 0) > 10


def test_volumes_that_do_not_differ_take_all_passes() -> None:
    rule = Precision(N_PASSES)
    passes = 1 + 0.1 * np.random.default_rng(2).standard_normal((12, N_PASSES))
    taken = [scored(rule, str(i), running_means(row)).n_passes or 0 for i, row in enumerate(passes)]
    assert max(taken[FIRST_VOLUMES:]) == N_PASSES
    zeros = Precision(3)
    taken = [scored(zeros, str(i), np.zeros(3)).n_passes or 0 for i in range(8)]
    assert taken == [3] * 8


def test_scores_from_before_an_interruption_count() -> None:
    passes = pool(np.random.default_rng(3), 30, 0.1, 0.3)
    rule, resumed = Precision(N_PASSES), Precision(N_PASSES)
    for i in range(15):
        resumed.observe(scored(rule, str(i), running_means(passes[i])))
    for i in range(15, 30):
        assert scored(resumed, str(i), running_means(passes[i])) == scored(
            rule, str(i), running_means(passes[i])
        )
