"""``alseg.compare --budget cost``: every number is of the costs, or does not depend on them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from alseg.compare import compare
from alseg.comparison.budget import rounds_along
from tests.comparison.synthetic import dice_rows, write_run

BUDGETS = (5, 10, 15, 20, 25, 30)
PRICES = {"power": 1000, "random": 2000}  # of a volume, in foreground voxels
SEEDS = (1, 2, 3)
TARGET = 0.88


def costs(strategy: str, seed: int) -> list[int]:
    return [PRICES[strategy] * n + seed for n in BUDGETS]


def dice() -> list[float]:
    """Of each round, of both strategies: they differ in what their volumes cost only."""
    return [row["test_dice"] for row in dice_rows("random", 1, BUDGETS, 0.0)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, pd.DataFrame]]:
    """The tables of one comparison along labelled volumes and one along costs, by budget."""
    root = tmp_path_factory.mktemp("along_costs")
    for strategy in PRICES:
        for seed in SEEDS:
            history = [
                row | {"cost": cost, "foreground_voxels": cost}
                for row, cost in zip(
                    dice_rows("random", 1, BUDGETS, 0.0), costs(strategy, seed), strict=True
                )
            ]
            folder = root / "runs" / f"{strategy}_{seed}"
            write_run(folder, strategy, seed, history=history, cost="foreground_voxels")
    (full,) = dice_rows("full", 1, (60,), 0.0)
    full |= {"cost": 120_000, "foreground_voxels": 120_000}
    write_run(root / "runs" / "full_1", "full", 1, history=[full], cost="foreground_voxels")
    found = {}
    for budget in ("labelled", "cost"):
        output = root / budget
        options = ["--budget", budget, "--target-dice", str(TARGET), "--output", str(output)]
        compare([str(root / "runs"), *options])
        found[budget] = {p.stem: pd.read_csv(p) for p in (output / "tables").glob("*.csv")}
        found[budget]["page"] = (output / "index.html").read_text(encoding="utf-8")  # type: ignore[assignment]
    return found


def test_what_does_not_depend_on_the_budget_is_the_same_along_costs(
    tables: dict[str, dict[str, pd.DataFrame]],
) -> None:
    for name in ("foreground_efficiency", "seconds"):
        pd.testing.assert_frame_equal(tables["cost"][name], tables["labelled"][name])
    gamma = tables["cost"]["foreground_efficiency"].set_index("strategy")["foreground_efficiency"]
    assert gamma["power"] == pytest.approx(2 * gamma["random"], rel=1e-3)


def test_forecasts_are_fitted_to_the_costs_of_the_rounds(
    tables: dict[str, dict[str, pd.DataFrame]],
) -> None:
    found, labelled = (
        tables[budget]["forecast"].set_index("strategy") for budget in ("cost", "labelled")
    )
    for strategy, price in PRICES.items():
        assert found.loc[strategy, "model"] == labelled.loc[strategy, "model"] == "power law"
        for column in ("labelled", "low", "high"):
            expected = price * labelled.loc[strategy, column]
            assert found.loc[strategy, column] == pytest.approx(expected, rel=0.01)
    # 179 volumes, by the curve that the runs were made of
    assert labelled.loc["power", "labelled"] == pytest.approx((0.45 / 0.02) ** (1 / 0.6), rel=0.01)
    back_tests = [tables[budget]["back_test"] for budget in ("cost", "labelled")]
    for back_test in back_tests:
        assert back_test["rounds_ahead"].tolist() == [2, 1, 2, 1]
    errors = [back_test["error"].tolist() for back_test in back_tests]
    assert errors[0] == pytest.approx(errors[1], abs=1e-4)
    assert "each at the mean of its costs over seeds" in str(tables["cost"]["page"])


def test_the_last_gain_and_the_penalty_matrix_are_those_of_equal_costs(
    tables: dict[str, dict[str, pd.DataFrame]],
) -> None:
    gains = tables["cost"]["last_gain"].set_index("strategy")
    for strategy in PRICES:
        before, after = gains.loc[strategy, ["before", "after"]]
        assert 25_000 < before < 27_000 < 29_500 < after < 30_002
        steps = [np.interp([before, after], costs(strategy, s), dice()) for s in SEEDS]
        assert gains.loc[strategy, "dice"] == pytest.approx(np.mean([b - a for a, b in steps]))
    assert gains.loc["random", "dice"] > 1.2 * gains.loc["power", "dice"]
    shares = {
        budget: tables[budget]["penalty"].set_index(["strategy", "beats"])["share_of_budgets"]
        for budget in ("cost", "labelled")
    }
    assert shares["labelled"].tolist() == [0, 0]
    assert shares["cost"]["power", "random"] == pytest.approx(1)
    assert shares["cost"]["random", "power"] == 0
    assert str(tables["cost"]["page"]).count("read off linearly between its own rounds") == 2
    assert "between its own rounds" not in str(tables["labelled"]["page"])


def test_rounds_lie_at_the_mean_of_their_costs_and_those_that_cost_nothing_are_left_out() -> None:
    curves = pd.DataFrame(
        {"strategy": "a", "seed": [1, 1, 1, 2, 2], "labelled": [5, 10, 15, 5, 10],
         "cost": [0.0, 10.0, 30.0, 0.0, 14.0], "dice": [0.1, 0.2, 0.3, 0.1, 0.2]}
    )  # fmt: skip
    assert rounds_along(curves, "cost")["labelled"].tolist() == [12, 30, 12]
    assert rounds_along(curves, "labelled") is curves
