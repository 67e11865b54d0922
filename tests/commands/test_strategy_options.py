"""Uncertainty sources, cold start, costs and one's own strategy, by running the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from alseg.active.initial_pool_from_images import initial_cases, typical_cases
from alseg.core.errors import ConfigError
from alseg.data.cache import VolumeCache
from alseg.data.formats.msd import read_msd
from tests.conftest import write_msd
from tests.smoke_runs import run_smoke

EXAMPLE = Path(__file__).parents[2] / "scripts" / "own_strategy"


def acquired(state: dict, round_number: int) -> list[str]:
    return [row["case_id"] for row in state["queries"] if row["round"] == round_number]


def test_ensemble_trains_members_and_needs_no_dropout(shared: Path, tmp_path: Path) -> None:
    overrides = ("uncertainty=ensemble", "uncertainty.n_members=2", "model.dropout=0")
    state = run_smoke(tmp_path, shared, "strategy=bald", *overrides)
    rounds = tmp_path / "rounds"
    assert (rounds / "round_01" / "best_member_2.ckpt").is_file()
    assert not (rounds / "round_02" / "best_member_2.ckpt").exists()  # it acquires nothing
    scores = [row["score"] for row in state["queries"] if row["round"] == 1]
    assert min(scores) > 0  # the members differ
    alone = run_smoke(tmp_path / "alone", shared, "strategy=random", "model.dropout=0")
    # The round's own network is the same with and without members.
    assert state["history"][0] == alone["history"][0]


def test_flips_need_no_dropout(shared: Path, tmp_path: Path) -> None:
    state = run_smoke(tmp_path, shared, "strategy=bald", "uncertainty=tta", "model.dropout=0")
    assert all(row["score"] > 0 for row in state["queries"] if row["round"] == 1)


def test_mc_dropout_needs_dropout_where_the_strategy_needs_passes(
    shared: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"model\.dropout"):
        run_smoke(tmp_path / "bald", shared, "strategy=bald", "model.dropout=0")
    state = run_smoke(tmp_path / "core_set", shared, "strategy=core_set", "model.dropout=0")
    assert len(acquired(state, 1)) == 2
    features = pd.read_csv(tmp_path / "core_set" / "rounds" / "round_01" / "features.csv")
    assert len(features) == 2 + 5  # labelled cases and candidates
    assert features.notna().all(axis=None)


@pytest.mark.parametrize("kind", ["diverse", "typical"])
def test_a_start_by_images_is_the_same_for_all_strategies_of_a_seed(
    shared: Path, tmp_path: Path, kind: str
) -> None:
    def start(name: str, strategy: str, *overrides: str) -> list[str]:
        one_round = ("pool.rounds=1", "steps_per_round=1", "val_interval=1", "pool.initial=3")
        state = run_smoke(tmp_path / name, shared, f"strategy={strategy}", *one_round, *overrides)
        return acquired(state, 0)

    random = start("a", "random")
    by_images = start("b", "random", f"pool.start={kind}")
    assert by_images == start("c", "variance", f"pool.start={kind}")
    assert len(set(by_images)) == 3
    assert by_images != random
    with pytest.raises(ConfigError, match=r"pool\.start"):
        start("d", "random", "pool.start=clever")


def test_a_typical_start_takes_a_case_of_each_kind_and_one_of_a_patient(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    edges = [12] * 4 + [18] * 4 + [24] * 4  # three kinds of image
    images = [noise.normal(n, n, size=(n, n, n)).astype(np.float32) for n in edges]
    labels = [np.zeros(image.shape, np.uint8) for image in images]
    root = write_msd(tmp_path / "data", images, labels)
    cache = VolumeCache(read_msd(root), [], "none", tmp_path / "cache")
    ids = sorted(cache.task.cases)
    for seed in range(3):
        chosen = initial_cases("typical", cache, ids, 3, seed)
        assert {edges[ids.index(case_id)] for case_id in chosen} == {12, 18, 24}
        assert initial_cases("typical", cache, reversed(ids), 3, seed) == chosen
        of_patients = initial_cases("typical", cache, ids, 3, seed, r"(case_0)[0-7]")
        assert sum(case_id <= "case_07" for case_id in of_patients) == 1


def test_a_typical_start_takes_the_members_of_groups_in_turn() -> None:
    noise = np.random.default_rng(0)
    patients, phases = [f"patient{n:02d}" for n in range(30)], ("a", "b")
    features = {f"{p}_{phase}": noise.normal(size=4) for p in patients for phase in phases}
    first: set[str] = set()
    for seed in range(8):
        chosen = typical_cases(features, 6, np.random.default_rng(seed), r"patient\d+")
        assert len({case_id[:9] for case_id in chosen}) == 6
        assert sorted(case_id[-1] for case_id in chosen) == list("aaabbb")
        first.add(chosen[0][-1])
    assert first == set(phases)  # which phase comes first is drawn
    # with more than there are patients each has one before any has two, and all can be chosen
    many = typical_cases(features, 40, np.random.default_rng(0), r"patient\d+")
    assert len({case_id[:9] for case_id in many[:30]}) == 30
    everything = typical_cases(features, 60, np.random.default_rng(0), r"patient\d+")
    assert sorted(everything) == sorted(features)


def test_costs_add_up_and_the_budget_ends_the_run(shared: Path, tmp_path: Path) -> None:
    common = ("cost=foreground_voxels", "pool.rounds=3", "steps_per_round=1", "val_interval=1")
    unlimited = run_smoke(tmp_path / "unlimited", shared, "strategy=random", *common)
    history = pd.DataFrame(unlimited["history"])
    queries = pd.read_csv(tmp_path / "unlimited" / "queries.csv")
    for row in unlimited["history"]:
        assert row["cost"] == queries.loc[queries["round"] < row["round"], "cost"].sum()
    assert history["labelled"].tolist() == [2, 4, 6]
    # A budget that the first query spends: its labels are still trained with.
    budget = history["cost"][0] + 1
    limited = run_smoke(
        tmp_path / "limited", shared, "strategy=random", *common, f"pool.budget={budget}"
    )
    assert [row["labelled"] for row in limited["history"]] == [2, 4]
    assert limited["history"][-1]["cost"] >= budget
    for bad in ("0", "-3", ".nan"):
        with pytest.raises(ConfigError, match=r"pool\.budget"):
            run_smoke(tmp_path / bad, shared, "strategy=random", f"pool.budget={bad}")


def test_query_of_one_and_a_query_larger_than_the_pool(shared: Path, tmp_path: Path) -> None:
    # A query larger than what is left takes all of it.
    for name in ("clasp_pe", "hybrid"):
        state = run_smoke(tmp_path / name, shared, f"strategy={name}", "pool.query_size=100")
        assert state["pool"]["unlabelled"] == []
    state = run_smoke(tmp_path / "one", shared, "strategy=clasp_pe", "pool.query_size=1")
    assert len(acquired(state, 1)) == 1


def test_own_strategy_from_outside_the_package(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    state = run_smoke(
        tmp_path,
        shared,
        f"hydra.searchpath=[file://{EXAMPLE / 'conf'}]",
        "strategy=tumour_doubt",
    )
    scores = pd.read_csv(tmp_path / "rounds" / "round_01" / "scores.csv")
    ranked = scores.sort_values("score", ascending=False)["case_id"].tolist()
    assert acquired(state, 1) == [ranked[0], ranked[2]]


def test_own_part_in_a_strategy_of_the_package(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    search = f"hydra.searchpath=[file://{EXAMPLE / 'conf'}]"
    run_smoke(tmp_path, shared, search, "strategy=entropy", "strategy/selector=every_second")
    assert "name: entropy+selector=every_second" in (tmp_path / "config.yaml").read_text()


def test_a_strategy_that_misses_a_part_fails_before_training(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="needs features"):
        run_smoke(tmp_path, shared, "strategy=core_set", "strategy.features=null")
    assert not (tmp_path / "state.json").exists()
