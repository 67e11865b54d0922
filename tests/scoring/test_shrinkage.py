"""Scores of few passes lean on what the deterministic pass expects, as far as that is worth it."""

from __future__ import annotations

import numpy as np
import pytest

from alseg.scoring.shrinkage import ShrunkScores, evidence_of, settled
from alseg.strategies.strategy import CaseScore
from tests.scoring.pass_by_pass import running_means, taken


def pool(
    rng: np.random.Generator, n: int, n_passes: int, spread: float, tau: float
) -> tuple[list[CaseScore], np.ndarray]:
    """Volumes whose scores are 3 times what is expected, within ``tau``, and their true scores."""
    expected = rng.lognormal(0, 0.4, n)
    true = 3 * expected * np.exp(rng.normal(0, tau, n))
    passes = true[:, None] * rng.gamma(1 / spread**2, spread**2, (n, n_passes))
    rows = zip(running_means(passes), expected, strict=True)
    return [taken(f"{i:03d}", row, float(h), 0.1) for i, (row, h) in enumerate(rows)], true


def logs(scores: list[CaseScore]) -> np.ndarray:
    return np.log([s.score or 0 for s in scores])


@pytest.mark.parametrize(("spread", "gain"), [(0.3, 2.0), (0.01, 0.97)])
def test_noisy_scores_come_nearer_to_the_truth_and_precise_ones_stay(
    spread: float, gain: float
) -> None:
    scores, true = pool(np.random.default_rng(0), 60, 2, spread, 0.05)
    error = [float(np.std(logs(s) - np.log(true))) for s in (scores, settled(scores))]
    assert error[0] / error[1] > gain


def test_the_bias_is_the_stated_share_of_the_distance_from_the_expectation() -> None:
    rng = np.random.default_rng(1)
    slopes = []
    for _ in range(40):
        scores, true = pool(rng, 100, 4, 0.2, 0.1)
        far = np.log(true) - np.log([s.expected or 0 for s in scores])
        slopes.append(np.polyfit(far, logs(settled(scores)) - np.log(true), 1)[0])
    # c² / (c² + t tau²) = 0.04 / (0.04 + 0.04)
    assert np.mean(slopes) == pytest.approx(-0.5, abs=0.05)


def test_scores_without_shrinkage_have_no_bias() -> None:
    rng = np.random.default_rng(2)
    ratios = []
    for _ in range(40):
        scores, true = pool(rng, 50, 2, 0.3, 0.1)
        ratios.append(np.mean([s.score or 0 for s in scores] / true))
    assert np.mean(ratios) == pytest.approx(1, abs=0.01)


def test_five_volumes_do_not_pass_for_alike() -> None:
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(60):
        scores, true = pool(rng, 5, 2, 0.3, 0.3)
        found = ShrunkScores([e for s in scores if (e := evidence_of(s))])
        held += int((np.abs(found.log_scores - np.log(true)) < 2 * np.sqrt(found.variances)).sum())
    assert held / 300 > 0.85


def test_the_order_of_the_scores_changes_nothing() -> None:
    scores, _ = pool(np.random.default_rng(5), 30, 2, 0.3, 0.1)
    mixed = settled(scores[11:] + scores[:11])
    assert sorted(mixed, key=lambda s: s.case_id) == settled(scores)


def test_scores_of_fixed_passes_and_of_0_stay_as_they_are() -> None:
    fixed = [CaseScore(name, score) for name, score in (("a", 1.0), ("b", 2.0), ("c", 0.5))]
    assert settled(fixed) == fixed
    scores, _ = pool(np.random.default_rng(6), 10, 2, 0.3, 0.1)
    empty = taken("empty", np.zeros(2), 0.0, 0.1)
    features = CaseScore("labelled", labelled=True)
    found = settled([empty, *scores, features])
    assert (found[0], found[-1]) == (empty, features)
    assert found[1:-1] == settled(scores)
    assert settled([scores[0], empty]) == [scores[0], empty]  # nothing to compare with
