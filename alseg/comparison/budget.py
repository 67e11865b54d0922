"""What learning curves run along: labelled units, or what it took to annotate them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from alseg.core.errors import ConfigError
from alseg.core.units import PLURALS
from alseg.run.measure import cost_axis

# What a comparison can run along, and how it is called; ``cost`` is that of the runs' cost model.
BUDGETS: Mapping[str, str] = {
    "labelled": "labelled {units}",
    "cost": "{cost}",
    "voxels": "annotated voxels",
    "foreground_voxels": "annotated foreground voxels",
    "slices": "annotated slices",
    "effort": "minutes of effort",
}
OF_REGIONS = ("voxels", "foreground_voxels", "slices", "effort")  # columns of their queries


def budget_label(budget: str, units: Collection[str], costs: Collection[str]) -> str:
    """How a budget is called, such as ``labelled volumes``.

    Args:
        budget: of ``BUDGETS``.
        units: what the runs annotate in one go, each once.
        costs: what their cost models count, each once.
    """
    (unit, *other_units), (cost, *other_costs) = units, costs
    called = "annotation cost" if other_costs else cost_axis(cost)
    return BUDGETS[budget].format(
        units="units" if other_units else PLURALS.get(unit, "units"), cost=called
    )


def annotated(queries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What annotating some units has taken, by each of ``OF_REGIONS``; for runs of regions."""
    if not queries or OF_REGIONS[0] not in queries[0]:
        return {}
    return {f"annotated_{name}": float(sum(q[name] for q in queries)) for name in OF_REGIONS}


def along(curves: pd.DataFrame, budget: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Learning curves along another budget: ``labelled`` holds it then.

    Runs reach costs of their own, so each is read off, linearly, at common ones. Of rounds of a
    run that cost nothing the last one stays.

    Args:
        curves: as ``learning_curves`` gives them, without full-data runs.
        budget: of ``BUDGETS``.

    Returns:
        All runs at as many round budgets as the shortest has rounds, evenly spaced over what all
        of them reach, for tables; and at these and the cost of each round of any run between the
        first and the last of them, for areas, which so miss no round.

    Raises:
        ConfigError: if a run does not say it, or the runs have no range in common.
    """
    if budget == "labelled":
        return curves, curves
    curves = curves.assign(labelled=_spent(curves, budget))
    curves = curves.drop_duplicates(["strategy", "seed", "labelled"], keep="last")
    runs = [run for _, run in curves.groupby(["strategy", "seed"])]
    last_to_start = max(runs, key=lambda run: run["labelled"].min())
    first_to_end = min(runs, key=lambda run: run["labelled"].max())
    low, high = last_to_start["labelled"].min(), first_to_end["labelled"].max()
    if low >= high:
        raise ConfigError(
            f"the runs have no {budget} in common: {_named(last_to_start)} starts at {low:g}, "
            f"{_named(first_to_end)} ends at {high:g}; leave one of them out"
        )
    even = _rounded(np.linspace(low, high, max(2, min(map(len, runs)))))
    within = curves.loc[curves["labelled"].between(even[0], even[-1]), "labelled"]
    at_even, at_all = (
        pd.concat((read_off(run, budgets) for run in runs), ignore_index=True)
        for budgets in (even, np.union1d(even, within))
    )
    return at_even, at_all


def rounds_along(curves: pd.DataFrame, budget: str) -> pd.DataFrame:
    """The rounds themselves along another budget, to fit curves to: ``labelled`` holds it then.

    Nothing is read off between rounds, nor cut to what all runs have reached. What a strategy has
    labelled in a round cost its runs a little more or less, so the round lies at the mean over
    them. Rounds that have cost nothing yet are left out: curves begin above 0.

    Rejected: the budgets of ``along``. Points between rounds scatter less than rounds, so fits to
    them look surer than they are, and a run loses the rounds that others have not reached.

    Args:
        curves: as ``along`` takes them.
        budget: of ``BUDGETS``.

    Raises:
        ConfigError: if a run does not say it.
    """
    if budget == "labelled":
        return curves
    spent = _spent(curves, budget).groupby([curves["strategy"], curves["labelled"]])
    curves = curves.assign(labelled=spent.transform("mean"))
    return curves[curves["labelled"] > 0].reset_index(drop=True)


def _spent(curves: pd.DataFrame, budget: str) -> pd.Series:
    """What each round had taken of a budget.

    Raises:
        ConfigError: if a run does not say it.
    """
    column = budget if budget == "cost" else f"annotated_{budget}"
    silent = curves if column not in curves else curves[curves[column].isna()]
    if len(silent):
        raise ConfigError(
            f"--budget {budget} needs runs that say it, as those of pool.unit=patch or slice do, "
            f"and {_named(silent)} does not; for runs of whole volumes set cost={budget} and "
            "compare with --budget cost"
        )
    return curves[column]


def read_off(curve: pd.DataFrame, budgets: np.ndarray) -> pd.DataFrame:
    """The rounds of one run at other budgets, as far as its own reach, linear between.

    Args:
        curve: of the run, with the budgets that it has reached as ``labelled``.
        budgets: the others, increasing.
    """
    labelled = curve["labelled"].to_numpy()
    reached = budgets[(budgets >= labelled[0]) & (budgets <= labelled[-1])]
    columns = {
        name: np.interp(reached, labelled, values)
        for name, values in curve.select_dtypes("number").items()
        if name not in ("seed", "round")
    }
    rounds = curve["round"].to_numpy()[np.searchsorted(labelled, reached)]
    same = {name: curve[name].iloc[0] for name in ("strategy", "seed", "full_data")}
    return pd.DataFrame(same | {"round": rounds} | columns | {"labelled": reached})


def _named(curve: pd.DataFrame) -> str:
    """How the first run of some curves is called."""
    return f"{curve['strategy'].iloc[0]}, seed {curve['seed'].iloc[0]}"


def whole_if_it_is(number: float) -> float:
    """A whole number as an int, so that it is written without a point."""
    return int(number) if float(number).is_integer() else float(number)


def _rounded(budgets: np.ndarray) -> np.ndarray:
    """Budgets of three significant digits, inwards so that all runs still reach them.

    Of more digits where three make two budgets one, or leave less than 90% of their range; the
    budgets as they are where no number of digits does.

    Args:
        budgets: evenly spaced, increasing.
    """
    low, high = budgets[0], budgets[-1]
    magnitude = int(np.floor(np.log10(high)))
    for digits in range(3, 16):
        decimals = digits - 1 - magnitude
        step = 10.0**-decimals
        inner = np.round(budgets, decimals)
        inner[0] = np.round(low + step * (inner[0] < low), decimals)
        inner[-1] = np.round(high - step * (inner[-1] > high), decimals)
        within = low <= inner[0] and inner[-1] <= high
        if within and np.all(np.diff(inner) > 0) and np.ptp(inner) >= 0.9 * (high - low):
            return inner
    return np.unique(budgets)
