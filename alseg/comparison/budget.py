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


def along(curves: pd.DataFrame, budget: str) -> pd.DataFrame:
    """Learning curves along another budget: ``labelled`` holds it then.

    Runs reach costs of their own, so each is read off, linearly, at as many common ones as the
    shortest has rounds, evenly spaced over what all of them reach.

    Args:
        curves: as ``learning_curves`` gives them, without full-data runs.
        budget: of ``BUDGETS``.

    Raises:
        ConfigError: if a run does not say it, or the runs have no range in common.
    """
    if budget == "labelled":
        return curves
    column = budget if budget == "cost" else f"annotated_{budget}"
    silent = curves if column not in curves else curves[curves[column].isna()]
    if len(silent):
        raise ConfigError(
            f"--budget {budget} needs runs that say it, as those of pool.unit=patch or slice do, "
            f"and {_named(silent)} does not; for runs of whole volumes set cost={budget} and "
            "compare with --budget cost"
        )
    groups = curves.assign(labelled=curves[column]).groupby(["strategy", "seed"])
    runs = [run for _, run in groups]
    last_to_start = max(runs, key=lambda run: run["labelled"].min())
    first_to_end = min(runs, key=lambda run: run["labelled"].max())
    low, high = last_to_start["labelled"].min(), first_to_end["labelled"].max()
    if low >= high:
        raise ConfigError(
            f"the runs have no {budget} in common: {_named(last_to_start)} starts at {low:g}, "
            f"{_named(first_to_end)} ends at {high:g}; leave one of them out"
        )
    budgets = _rounded(np.linspace(low, high, max(2, min(map(len, runs)))))
    return pd.concat((read_off(run, budgets) for run in runs), ignore_index=True)


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
    """Budgets of three significant digits, inwards so that all runs still reach them."""
    digits = 2 - int(np.floor(np.log10(budgets[-1])))
    scale = 10.0**digits
    inner = np.round(budgets * scale)
    inner[0], inner[-1] = np.ceil(budgets[0] * scale), np.floor(budgets[-1] * scale)
    return np.unique(inner) / scale
