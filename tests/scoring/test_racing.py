"""Racing: the same top k as all passes, with fewer of them, at a stated error rate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from alseg.scoring.racing import Contender, Heats, Race, n_top_needed, pseudo_values
from alseg.strategies.selectors.diverse import k_center
from alseg.strategies.selectors.noisy import power
from alseg.strategies.selectors.ranked import prefilter, top_k

N_PASSES = 10


def running_means(increments: np.ndarray) -> np.ndarray:
    """Scores after each pass, [n, T]."""
    return np.cumsum(increments, axis=1) / np.arange(1, increments.shape[1] + 1)


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


def run(
    race: Race, scores: np.ndarray, hints: np.ndarray | None = None, heat_size: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted scores [n] and passes taken [n], in heats of some volumes."""
    n = len(scores)
    contenders = [
        Contender(f"{i:03d}", iter(scores[i]), None if hints is None else hints[i])
        for i in range(n)
    ]
    raced = [r for i in range(0, n, heat_size) for r in race.run(contenders[i : i + heat_size])]
    by_case = {r.case_id: r for r in raced}
    assert len(by_case) == len(raced) == n
    ordered = [by_case[c.case_id] for c in contenders]
    return np.array([r.score for r in ordered]), np.array([len(r.pass_scores) for r in ordered])


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
    raced, passes = run(Race(5, N_PASSES, 0.05, 40), scores)
    assert passes[:5].tolist() == [N_PASSES] * 5  # nothing to compare with yet
    assert (passes[20:] == 2).all()
    assert best(raced, 5) == best(scores[:, -1], 5)
    np.testing.assert_allclose(raced[20:], 1.0, atol=0.3)
    full = passes == N_PASSES
    assert np.array_equal(raced[full], scores[full, -1])  # exactly


def test_passes_that_are_not_needed_are_not_made() -> None:
    made = []

    def scores(level: float) -> Iterator[float]:
        for t in range(1, N_PASSES + 1):
            made.append(level)
            yield level * (1 + 0.01 * (-1) ** t)

    race = Race(1, N_PASSES, 0.05, 3)
    for level in (10.0, 1.0):
        race.run([Contender(str(level), scores(level))])
    assert made.count(10.0) == N_PASSES
    assert made.count(1.0) == 2


@pytest.mark.parametrize("heat_size", [1, 15])
@pytest.mark.parametrize("hinted", [False, True])
@pytest.mark.parametrize(
    ("spread", "between", "biased"), [(0.1, 0.2, True), (0.2, 0.5, False), (0.4, 0.3, True)]
)
def test_the_error_rate_holds(
    spread: float, between: float, biased: bool, hinted: bool, heat_size: int
) -> None:
    rng = np.random.default_rng(1)
    n_pools, wrong, passes_taken = 60, 0, 0.0
    for _ in range(n_pools):
        scores = simulated_pool(rng, 40, spread, between, biased)
        hints = scores[:, -1] ** 0.7 * rng.lognormal(0, 0.15, 40) if hinted else None
        raced, passes = run(Race(5, N_PASSES, 0.05, 40), scores, hints, heat_size)
        wrong += best(raced, 5) != best(scores[:, -1], 5)
        passes_taken += passes.mean() / n_pools
    assert wrong / n_pools <= 0.05, (wrong, passes_taken)
    assert passes_taken < N_PASSES


@pytest.mark.parametrize(("n_passes", "spread"), [(2, 0.0), (4, 0.2)])
def test_the_error_rate_holds_for_one_winner_among_many_with_weak_hints(
    n_passes: int, spread: float
) -> None:
    # the winner is the volume with the largest residual, and looks at hints are many
    rng = np.random.default_rng(5)
    n_pools, wrong, n_hinted = 200, 0, 0
    for _ in range(n_pools):
        hints = rng.lognormal(0, 0.7, 100)
        level = hints * rng.lognormal(0, 1.0, 100)
        noise = 1 + spread * rng.standard_normal((100, n_passes))
        scores = running_means(level[:, None] * noise)
        race = Race(1, n_passes, 0.05, 100)
        raced, passes = run(race, scores, hints, heat_size=100)
        wrong += best(raced, 1) != best(scores[:, -1], 1)
        n_hinted += (passes == 0).sum()
    assert wrong / n_pools <= 0.05, wrong
    assert n_hinted > 0


def test_a_looser_error_rate_saves_more() -> None:
    scores = simulated_pool(np.random.default_rng(2), 200, 0.2, 0.3, True)
    taken = [run(Race(5, N_PASSES, rate, 200), scores)[1].sum() for rate in (0.001, 0.05, 0.5)]
    assert taken[0] > taken[1] > taken[2]


def test_heats_and_hints_save_passes() -> None:
    rng = np.random.default_rng(4)
    scores = simulated_pool(rng, 120, 0.15, 0.4, True)
    hints = scores[:, -1] * rng.lognormal(0, 0.1, 120)

    def taken(hints: np.ndarray | None, heat_size: int) -> np.ndarray:
        return run(Race(5, N_PASSES, 0.05, 40), scores, hints, heat_size)[1]

    alone, together, hinted = taken(None, 1), taken(None, 20), taken(hints, 20)
    assert hinted.sum() < 0.7 * together.sum() < 0.7 * alone.sum()
    assert (hinted == 0).mean() > 0.4  # a hint by itself stops them
    assert (together >= 2).all()


def test_a_hint_alone_stops_nobody_as_long_as_it_is_not_known_what_it_is_worth() -> None:
    scores = np.repeat([10.0, 1.0], [3, 17])[:, None] * np.ones(N_PASSES)
    _, passes = run(Race(3, N_PASSES, 0.05, 40), scores, scores[:, -1], heat_size=20)
    assert (passes[:3] == N_PASSES).all()
    assert sorted(passes[3:])[-2:] == [2, 2]  # two more pairs
    assert sorted(passes[3:])[:-2] == [0] * 15
    # equal hints say nothing
    _, passes = run(Race(3, N_PASSES, 0.05, 40), scores, np.ones(20), heat_size=20)
    assert (passes >= 2).all()


def test_what_promises_most_is_looked_at_first() -> None:
    order: list[str] = []

    def scores(name: str, level: float) -> Iterator[float]:
        for _ in range(N_PASSES):
            order.append(name)
            yield level

    heat = [Contender(n, scores(n, x), x) for n, x in (("c", 1.0), ("a", 3.0), ("b", 2.0))]
    raced = Race(1, N_PASSES, 0.05, 3).run(heat)
    assert order[:N_PASSES] == ["a"] * N_PASSES
    assert raced[0].case_id == "a"


@pytest.mark.parametrize("hinted", [False, True])
def test_scores_from_before_an_interruption_count(hinted: bool) -> None:
    rng = np.random.default_rng(3)
    scores = simulated_pool(rng, 40, 0.1, 0.3, True)
    hints = scores[:, -1] * rng.lognormal(0, 0.1, 40)

    def heat(first: int) -> list[Contender]:
        return [
            Contender(str(i), iter(scores[i]), hints[i] if hinted else None)
            for i in range(first, first + 10)
        ]

    race = Race(3, N_PASSES, 0.05, 40)
    heats = [race.run(heat(first)) for first in range(0, 40, 10)]
    assert any(len(r.pass_scores) < N_PASSES for r in heats[1])
    resumed = Race(3, N_PASSES, 0.05, 40)
    for before in [*heats[0], *heats[1]]:
        resumed.observe(before)
    # the rest of the race is the same, to the last pass
    assert [resumed.run(heat(20)), resumed.run(heat(30))] == heats[2:]


def test_a_heat_is_run_when_the_memory_is_full_or_the_last_volume_has_come() -> None:
    heats = Heats(Race(1, 2, 0.05, 9), limit=100)

    def enter(name: str, n_bytes: int, is_last: bool = False) -> list[str]:
        contender = Contender(name, iter([1.0, 1.0]))
        return [r.case_id for r in heats.enter(contender, n_bytes, is_last=is_last)]

    assert enter("a", 60) == []
    assert sorted(enter("b", 40)) == ["a", "b"]
    assert enter("c", 99) == []
    assert sorted(enter("d", 0, is_last=True)) == ["c", "d"]
    assert enter("e", 100) == ["e"]


def test_volumes_that_score_0_are_no_special_case() -> None:
    scores = np.zeros((20, N_PASSES))
    raced, passes = run(Race(2, N_PASSES, 0.05, 20), scores)
    assert not raced.any()
    assert (passes == N_PASSES).all()  # none is below another


def test_few_passes_are_all_made() -> None:
    for n_passes in (1, 2):
        (raced,) = Race(1, n_passes, 0.05, 1).run(
            [Contender("a", iter([1.0, 2.0][:n_passes]), 1.0)]
        )
        assert len(raced.pass_scores) == n_passes


def test_what_selectors_need() -> None:
    assert n_top_needed(top_k, 5) == 5
    assert n_top_needed(partial(top_k), 5) == 5
    assert n_top_needed(partial(prefilter, multiple=3, then=k_center), 5) == 15
    assert n_top_needed(partial(power, beta=1.0), 5) is None
