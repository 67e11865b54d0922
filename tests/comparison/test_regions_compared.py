"""Runs of regions side by side: along any cost, and where they ask; invented, and as by hand."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy.optimize import minimize_scalar

from alseg.compare import compare
from alseg.comparison.analysis import analyse
from alseg.comparison.budget import along, budget_label, read_off
from alseg.comparison.conclusions import sentences
from alseg.comparison.figures import Palette, annotation_curves
from alseg.comparison.page import all_drawings
from alseg.comparison.runs import RunSet, gather_runs
from alseg.comparison.statistics import Gain, foreground_efficiency, run_summaries
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
    # over their own rounds within 2.5 to 6 minutes, which the even budgets miss
    by_hand = [
        np.trapezoid([0.46, 0.56, 0.56 + 0.1 / 2.5], [2.5, 5, 6]),
        np.trapezoid([0.41 + 0.1 / 1.5, 0.51, 0.61, 0.71], [2.5, 3, 4.5, 6]),
    ]
    assert difference == pytest.approx((by_hand[0] - by_hand[1]) / 3.5)


def test_tables_of_costs_have_a_row_for_each_budget(folders: tuple[Path, ...]) -> None:
    comparison = analyse(run_set_of(folders, "effort"))
    for table in (cost_table(comparison), effort_table(comparison)):
        assert table.data["labelled"].tolist() == pytest.approx([2.5, 3.67, 4.83, 6.0] * 2)
        assert table.shown[comparison.budget_label].tolist()[:2] == ["2.5", "3.67"]
    effort = effort_table(comparison).data
    assert effort["annotated_effort"].tolist() == pytest.approx(effort["labelled"].tolist())


def test_tables_write_millions_of_voxels_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ASKS:
        monkeypatch.setitem(ASKS, name, (1_234_567, *ASKS[name][1:]))
    runs = tuple(write_regions(tmp_path / name, name, 1) for name in ASKS)
    tables = {table.name: table for table in all_tables(analyse(run_set_of(runs, "voxels")))}
    wanted = ["1240000", "2470000", "3700000", "4930000"]
    assert tables["dice"].shown["annotated voxels"].tolist() == wanted
    effort = tables["effort"].shown["annotated voxels"]
    assert effort.tolist()[:4] == ["1,240,000", "2,470,000", "3,700,000", "4,930,000"]


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


def curves_of(*runs: tuple[list[float], list[float]]) -> pd.DataFrame:
    """Runs of one seed, of strategies ``run_0``, ...: the costs and the Dice of their rounds."""
    return pd.concat(
        [
            pd.DataFrame(
                {"strategy": f"run_{i}", "seed": 1, "full_data": False, "cost": costs, "dice": dice}
            ).assign(round=range(1, len(costs) + 1), labelled=range(1, len(costs) + 1))
            for i, (costs, dice) in enumerate(runs)
        ],
        ignore_index=True,
    )


def mean_dice_by_hand(costs: list[float], dice: list[float], low: float, high: float) -> float:
    """The trapezoid through the rounds of one run, whatever the others have reached."""
    own = [low, *(cost for cost in costs if low < cost < high), high]
    return float(np.trapezoid(np.interp(own, costs, dice), own)) / (high - low)


@pytest.mark.parametrize(
    "costs",
    [
        ([20224.0, 20288.0], [3000.0, 20224.0, 31000.0]),
        ([20224.0, 20250.0, 20270.0, 20288.0], [3000.0, 10000.0, 20000.0, 31000.0]),
        ([500.0, 1000.0, 1500.0], [1001.2, 1004.0, 1008.0]),
        ([1.0, 1e7], [1234561.0, 1234569.0]),
        ([0.1, 0.2 + 1e-9], [0.2, 0.3]),
        ([0.1, 0.30000000000000004], [0.3, 0.4]),  # next to each other: nothing lies between
        ([0.0, 0.004, 0.007], [0.0, 0.002, 0.009]),
    ],
)
def test_no_run_drops_out_of_a_narrow_range(costs: tuple[list[float], list[float]]) -> None:
    low, high = max(min(run) for run in costs), min(max(run) for run in costs)
    for curves in along(curves_of(*((run, [0.5] * len(run)) for run in costs)), "cost"):
        budgets = sorted(set(curves["labelled"]))
        assert len(budgets) >= 2
        assert low <= budgets[0] < budgets[-1] <= high
        by_run = curves.groupby("strategy")["labelled"].agg(list)
        assert by_run.to_dict() == {"run_0": budgets, "run_1": budgets}


@pytest.mark.parametrize("seed", range(20))
def test_tables_have_as_many_round_budgets_as_the_shortest_run_has_rounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scale, narrow = 10.0 ** rng.uniform(-2, 6), 10.0 ** rng.uniform(-5, 0)
    runs = [
        (np.sort(scale * (1 + narrow * np.r_[rng.uniform(0, 0.2), rng.random(n), 1.5])).tolist(),
         rng.random(n + 2).tolist())
        for n in (1, 3, 6)
    ]  # fmt: skip
    even, _ = along(curves_of(*runs), "cost")
    low, high = max(min(costs) for costs, _ in runs), min(max(costs) for costs, _ in runs)
    for _, run in even.groupby("strategy"):
        assert len(run) == 3
        assert run["labelled"].is_monotonic_increasing
        assert run["labelled"].between(low, high).all()
        assert np.ptp(run["labelled"]) >= 0.9 * (high - low)


@pytest.mark.parametrize("seed", range(10))
def test_areas_along_costs_miss_no_round_of_any_run(seed: int) -> None:
    rng = np.random.default_rng(seed)
    runs = [
        (np.sort(rng.uniform(100, 60000, n)).tolist(), rng.random(n).tolist()) for n in (9, 4, 6)
    ]
    runs.append(([50.0, 70000.0], [0.1, 0.9]))  # two rounds: the tables have two budgets
    even, at_all = along(curves_of(*runs), "cost")
    low, high = even["labelled"].min(), even["labelled"].max()
    assert even["labelled"].nunique() == 2
    summaries = run_summaries(at_all).set_index("strategy")
    for i, (costs, dice) in enumerate(runs):
        found = summaries.loc[f"run_{i}"]
        assert found["area"] == pytest.approx(mean_dice_by_hand(costs, dice, low, high), rel=1e-12)
        assert found["final"] == pytest.approx(np.interp(high, costs, dice), rel=1e-12)


def test_of_rounds_that_cost_nothing_the_last_one_stays() -> None:
    ties = curves_of(
        ([10.0, 20.0, 20.0, 30.0], [0.1, 0.9, 0.3, 0.5]), ([10.0, 10.0, 30.0], [0.1, 0.2, 0.2])
    )
    even, at_all = along(ties, "cost")
    assert even["labelled"].tolist() == [10, 30] * 2
    area = run_summaries(at_all).set_index("strategy").loc["run_0", "area"]
    assert area == pytest.approx((0.2 + 0.4) / 2)


@pytest.mark.parametrize(
    ("before", "after", "dice", "told"),
    [
        (10, 15, -0.01, ("-0.002", 1)),
        (10, 30, -0.0004, ("-0.0002", 10)),
        (14900, 57600, -0.00912, ("-0.0021", 10000)),
        (20224, 20288, 0.0001, ("+0.000016", 10)),
        (2.5, 2.6, 0.01, ("+0.1", 1)),
        (5, 10, -0.0, ("+0", 1)),
    ],
)
def test_slopes_are_told_for_as_many_units_as_show_them(
    before: float, after: float, dice: float, told: tuple[str, int]
) -> None:
    gain = Gain(before, after, 1, dice, np.nan, np.nan)
    assert (gain.told_slope, gain.told_for) == told


def test_what_labelling_more_brings_is_told_for_many_voxels(folders: tuple[Path, ...]) -> None:
    comparison = analyse(run_set_of(folders, "voxels"))
    assert "from 300 to 400 annotated voxels" in " ".join(sentences(comparison))
    assert any(text.endswith(", +0.1 for each 100.") for text in sentences(comparison))
    table = next(table for table in all_tables(comparison) if table.name == "last_gain")
    assert table.shown["for each 100"].tolist() == ["+0.1", "+0.1"]


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


@pytest.mark.parametrize("voxels", [900, 40_000, 3_000_000, 2e9])
def test_no_number_of_a_cost_lies_on_the_name_of_the_cost(voxels: float) -> None:
    rows = [("random", 2, 0.1, voxels / 3), ("random", 4, 0.2, voxels)]
    curves = pd.DataFrame(rows, columns=["strategy", "labelled", "dice", "voxels"])
    palette = Palette(["random"], "random", {"random": "random"})
    names = ("annotated voxels", "annotated foreground voxels", "annotated slices")
    figure = annotation_curves(curves, palette, 10, dict.fromkeys(names, "voxels"))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axis in (axes.xaxis for axes in figure.axes):
        numbers = [*axis.get_ticklabels(), axis.get_offset_text()]
        boxes = [n.get_window_extent() for n in numbers if n.get_text()]
        assert len(boxes) > 2
        boxes.append(axis.label.get_window_extent())
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


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
