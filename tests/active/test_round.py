"""What one round works on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alseg.active.plan import Plan
from alseg.active.round import Round
from alseg.core.pool import Pool
from alseg.core.seeding import seed_for
from alseg.data.splits import Splits
from alseg.run.state import RunState

PLAN = Plan(
    initial=1,
    query_size=1,
    rounds=3,
    steps_per_round=2,
    val_interval=1,
    val_interval_unit="steps",
    round_start="scratch",
    seed=4,
)


def round_after(folder: Path, plan: Plan, pool: Pool, finished: int = 0, cost: float = 1) -> Round:
    experiment: Any = SimpleNamespace(
        plan=plan,
        round_folder=lambda number: folder,
        needs_prediction=True,
        regions=None,
        data=SimpleNamespace(splits=Splits(("a", "b", "c", "d"), (), ())),
        semi_supervised="a second stage",
    )
    history = tuple({"round": number + 1} for number in range(finished))
    state = RunState(pool, "hash", finished, history, ({"round": 0, "cost": cost},), history)
    return Round.after(experiment, state)


@pytest.fixture
def pool() -> Pool:
    return Pool.start("dcba", "a")


def test_a_round_follows_the_state_and_chooses_from_what_is_unlabelled(
    tmp_path: Path, pool: Pool
) -> None:
    first = round_after(tmp_path, PLAN, pool)
    assert (first.number, first.title, first.is_last) == (1, "round 1/3", False)
    assert first.candidates == ("b", "c", "d")
    assert first.needs_prediction
    assert first.semi_supervised is not None
    assert first.seed("training") == seed_for(4, 1, "training")
    repeats = round_after(tmp_path, replace(PLAN, repeat_uncertain=True), pool)
    assert set(repeats.candidates) == set("abcd")


def test_no_query_follows_the_plans_last_round_a_spent_budget_or_an_empty_pool(
    tmp_path: Path, pool: Pool
) -> None:
    by_plan = round_after(tmp_path, PLAN, pool, finished=2)
    by_budget = round_after(tmp_path, replace(PLAN, budget=5), pool, cost=5)
    by_pool = round_after(tmp_path, PLAN, Pool.start("ab", "ab"))
    for last in (by_plan, by_budget, by_pool):
        assert last.is_last
        assert not last.needs_prediction
    assert by_pool.semi_supervised is None  # nothing is left to pseudo-label
    assert not round_after(tmp_path, replace(PLAN, budget=5), pool, cost=4.9).is_last
