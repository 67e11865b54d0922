"""Runs of regions side by side: along any cost, and where they ask; invented, and as by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

from alseg.compare import compare
from alseg.comparison.analysis import analyse
from alseg.comparison.budget import along, budget_label, read_off
from alseg.comparison.page import all_drawings
from alseg.comparison.runs import RunSet, gather_runs
from alseg.comparison.statistics import foreground_efficiency, run_summaries
from alseg.comparison.tables import all_tables, cost_table, effort_table
from alseg.core.errors import ConfigError
from alseg.core.pool import Pool
from alseg.core.units import Unit
from alseg.run.state import RunState
from tests.comparison.synthetic import CLASSES, timing, write_cases, write_run

CASES = tuple(f"case_{i:03d}" for i in range(4))
N_ROUNDS = 4
# voxels of a patch; inner, boundary voxels and classes of the queries
ASKS = {"random": (100, 5, 10, "1"), "entropy": (100, 20, 40, "1 2")}


def row_of(name: str, number: int, region: str) -> dict[str, Any]:
    voxels, inner, boundary, classes = ASKS[name]
    return {
        "round": number, "case_id": "case_000", "score": None, "rank": 1, "cost": 0.25,
        "region": region, "voxels": voxels, "foreground_voxels": inner + boundary // 2,
        "slices": 3, "effort": 1.5 if name == "random" else 2.5, "boundary_voxels": boundary,
        "inner_voxels": inner, "classes": classes,
    }  # fmt: skip


def write_regions(folder: Path, name: str, seed: int) -> Path:
    """A run that labels one patch of the first case a round; its Dice grows by 0.1 a round."""
    region = ((0, 1), (0, 1), (0, 1))
    pool = Pool(CASES[:1], CASES[1:], regions=(Unit(CASES[0], region),))
    state = RunState(pool, "hash", queries=(row_of(name, 0, "0:1,0:1,0:1"),))
    for number in range(1, N_ROUNDS + 1):
        dice = 0.3 + 0.1 * number + 0.01 * seed + (0.05 if name == "entropy" else 0.0)
        row: dict[str, Any] = {"round": number, "labelled": number, "cost": 0.25 * number}
        for part in ("val", "test"):
            row |= {f"{part}_dice": dice, **{f"{part}_dice_{c}": dice for c in CLASSES}}
        asked = () if number == N_ROUNDS else (row_of(name, number, "0:1,0:1,0:1"),)
        state = state.after_round(pool, row, asked, timing(number, needs_scores=True))
        round_folder = folder / "rounds" / f"round_{number:02d}"
        round_folder.mkdir(parents=True)
        write_cases(round_folder / "cases.csv", row)
    write_run(folder / "template", name, seed, cases=CASES, rounds=1)
    config = (folder / "template" / "config.yaml").read_text(encoding="utf-8")
    config = config.replace("rounds: 6", f"rounds: {N_ROUNDS}\n  unit: patch")
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    state.save(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    root = tmp_path_factory.mktemp("regions")
    return tuple(
        write_regions(root / f"{name}_{seed}", name, seed) for name in ASKS for seed in (1, 2, 3)
    )


def run_set_of(folders: tuple[Path, ...], budget: str = "labelled") -> RunSet:
    return gather_runs(folders, budget=budget)


def test_curves_run_along_patches_and_say_so(folders: tuple[Path, ...]) -> None:
    comparison = analyse(run_set_of(folders))
    assert comparison.budget_label == "labelled patches"
    assert sorted(set(comparison.curves["labelled"])) == [1, 2, 3, 4]
    dice = next(table for table in all_tables(comparison) if table.name == "dice")
    assert dice.caption.startswith("Mean test Dice by number of labelled patches")


def test_each_cost_adds_up_over_the_queries(folders: tuple[Path, ...]) -> None:
    curves = analyse(run_set_of(folders)).curves
    of_run = curves[(curves["strategy"] == "entropy") & (curves["seed"] == 1)]
    assert of_run["annotated_voxels"].tolist() == [100, 200, 300, 400]
    assert of_run["annotated_foreground_voxels"].tolist() == [40, 80, 120, 160]
    assert of_run["annotated_slices"].tolist() == [3, 6, 9, 12]
    assert of_run["annotated_effort"].tolist() == [2.5, 5, 7.5, 10]


def test_along_effort_the_runs_are_read_off_where_all_have_been(folders: tuple[Path, ...]) -> None:
    comparison = analyse(run_set_of(folders, "effort"))
    assert comparison.budget_label == "minutes of effort"
    # random has come to 1.5, 3, 4.5, 6 minutes, entropy to 2.5, 5, 7.5, 10
    at = sorted(set(comparison.curves["labelled"]))
    assert at == pytest.approx([2.5, 3.67, 4.83, 6.0])
    for name, seed in (("random", 1), ("entropy", 3)):
        run = comparison.curves.query("strategy == @name and seed == @seed")
        minutes = np.array([1.5, 3, 4.5, 6] if name == "random" else [2.5, 5, 7.5, 10])
        dice = 0.3 + 0.1 * np.arange(1, 5) + 0.01 * seed + (0.05 if name == "entropy" else 0)
        assert run["dice"].to_numpy() == pytest.approx(np.interp(at, minutes, dice))
    difference = comparison.differences.set_index("strategy").loc["entropy", "difference"]
    by_hand = [
        np.trapezoid(comparison.curves.query("strategy == @s and seed == 1")["dice"], at)
        for s in ("entropy", "random")
    ]
    assert difference == pytest.approx((by_hand[0] - by_hand[1]) / (at[-1] - at[0]))


def test_tables_of_costs_have_a_row_for_each_budget(folders: tuple[Path, ...]) -> None:
    comparison = analyse(run_set_of(folders, "effort"))
    for table in (cost_table(comparison), effort_table(comparison)):
        assert table.data["labelled"].tolist() == pytest.approx([2.5, 3.67, 4.83, 6.0] * 2)
        assert table.shown[comparison.budget_label].tolist()[:2] == ["2.5", "3.67"]
    effort = effort_table(comparison).data
    assert effort["annotated_effort"].tolist() == pytest.approx(effort["labelled"].tolist())


def test_a_budget_that_runs_do_not_say_is_refused(tmp_path: Path, folders: Any) -> None:
    whole = tuple(write_run(tmp_path / f"{s}", s, 1) for s in ("random", "entropy"))
    with pytest.raises(
        ConfigError, match=r"needs runs that say it, .* and entropy, seed 1 does not"
    ):
        analyse(run_set_of(whole, "voxels"))
    with pytest.raises(ConfigError, match="--budget is 'hours'; allowed are labelled, cost"):
        compare([*map(str, folders), "--budget", "hours"])
    apart = pd.DataFrame(
        {"strategy": ["a"] * 2 + ["b"] * 2, "seed": 1, "full_data": False, "round": [1, 2] * 2,
         "labelled": [1, 2] * 2, "cost": [1.0, 2.0, 3.0, 4.0], "dice": 0.5}
    )  # fmt: skip
    with pytest.raises(ConfigError, match="b, seed 1 starts at 3, a, seed 1 ends at 2"):
        along(apart, "cost")


def test_budgets_have_names() -> None:
    assert budget_label("labelled", ["volume"], ["volume"]) == "labelled volumes"
    assert budget_label("labelled", ["patch", "slice"], ["volume"]) == "labelled units"
    assert budget_label("cost", ["patch", "volume"], ["voxels"]) == "annotated voxels"
    assert budget_label("cost", ["patch"], ["volume"]) == "labelled volumes"
    assert budget_label("cost", ["patch"], ["volume", "slices"]) == "annotation cost"


def test_reading_off_is_linear_and_goes_no_further_than_the_run() -> None:
    curve = pd.DataFrame(
        {"strategy": "a", "seed": 1, "full_data": False, "round": [1, 2], "labelled": [10.0, 20.0],
         "dice": [0.2, 0.4]}
    )  # fmt: skip
    read = read_off(curve, np.array([5.0, 10.0, 15.0, 25.0]))
    assert read["labelled"].tolist() == [10.0, 15.0]
    assert read["dice"].tolist() == pytest.approx([0.2, 0.3])


def test_where_strategies_ask_is_counted(folders: tuple[Path, ...]) -> None:
    comparison = analyse(run_set_of(folders))
    places = comparison.query_places
    first = places.query("strategy == 'entropy' and seed == 2 and round == 1").iloc[0]
    shares = first[["inner", "boundary", "background"]].tolist()
    assert shares == pytest.approx([0.2, 0.4, 0.4])
    assert first["n_classes"] == 2
    assert places.query("strategy == 'random'")["n_classes"].eq(1).all()
    tables = {table.name: table for table in all_tables(comparison)}
    assert "20.0%" in tables["query_places"].shown.to_string()
    assert {"query_places", "effort_curves"} <= {
        drawing.name for drawing in all_drawings(comparison)
    }
    assert tables["effort"].data["annotated_effort"].max() == 10


def test_whole_volumes_have_no_table_of_regions(tmp_path: Path) -> None:
    whole = tuple(write_run(tmp_path / s, s, 1) for s in ("random", "entropy"))
    comparison = analyse(run_set_of(whole))
    assert comparison.query_places.empty
    assert not {"query_places", "effort"} & {table.name for table in all_tables(comparison)}


def test_a_run_of_regions_is_complete_when_its_rounds_are_or_the_pool_is_dry(
    tmp_path: Path, folders: tuple[Path, ...]
) -> None:
    run = gather_runs(folders[:1]).runs[0]
    assert run.complete
    # four labelled patches are not the four volumes of the pool
    state = RunState.load(folders[0])
    unfinished = run.__class__(run.folder, run.config | {"pool": {"rounds": 9}}, state)
    assert unfinished.complete  # the last round asked for nothing: no room was left
    asks = (*state.queries, row_of("random", N_ROUNDS, "0:1,0:1,0:1"))
    state = RunState(state.pool, "hash", state.finished_rounds, state.history, asks, state.timings)
    assert not run.__class__(run.folder, run.config | {"pool": {"rounds": 9}}, state).complete


def test_the_area_of_equal_queries_is_the_trapezoid_over_rounds(folders: tuple[Path, ...]) -> None:
    """nnActive's area under the budget curve: evenly spaced rounds, of a range of 1."""
    curves = analyse(run_set_of(folders)).curves
    for row in run_summaries(curves).to_dict("records"):
        dice = curves.query("strategy == @row['strategy'] and seed == @row['seed']")["dice"]
        by_hand = sum((a + b) / 2 for a, b in pairwise(dice)) / (len(dice) - 1)
        assert row["area"] == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_foreground_efficiency_is_the_least_squares_of_its_curve(seed: int) -> None:
    """nnActive's -a exp(-b (x - x_offset)) + c with a, c and the offset fixed, minimised apart."""
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0.02, 0.5, 12))
    start, full, gamma = 0.4, 0.85, rng.uniform(1, 12)
    dice = full - (full - start) * np.exp(-gamma * (x - x[0])) + rng.normal(0, 0.01, len(x))

    def squares(b: float) -> float:
        curve = -(full - start) * np.exp(-b * (x - x.min())) + full
        return float(np.square(curve - dice).sum())

    best = minimize_scalar(squares, bounds=(0.01, 50), method="bounded", options={"xatol": 1e-9})
    found = foreground_efficiency(x.tolist(), dice.tolist(), start, full)
    assert found == pytest.approx(best.x, rel=1e-4)
