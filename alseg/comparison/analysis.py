"""Everything a comparison computes, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from alseg.comparison import statistics
from alseg.comparison.budget import along, rounds_along
from alseg.comparison.query_places import query_places
from alseg.comparison.runs import (
    RunSet,
    calibration_table,
    differing_settings,
    learning_curves,
    query_table,
    timing_table,
)
from alseg.comparison.statistics import Gain, Ranking
from alseg.core.errors import ConfigError
from alseg.curves.forecast import Forecast, back_test, forecast
from alseg.run.measure import Measure

DEFAULT_TARGET_SHARES = (0.95, 0.99)  # of the full-data Dice


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison; the columns of each table stand where it is computed.

    Attributes:
        run_set: the runs.
        curves: rounds of the runs with a learning curve, or at the budgets of ``along``.
        fitted: the rounds that curves are fitted to, as ``rounds_along`` gives them.
        full: the round of each full-data run; may be empty.
        summaries: area under the budget curve and final Dice of each run.
        differences: paired differences of the areas from the reference.
        final_differences: the same of the final Dice.
        difference_curves: paired differences at each labelled count.
        gains: what the last labels of each strategy brought; empty with one budget.
        savings: labels that each strategy saved against the reference, one row a seed.
        matrix: pairwise penalty matrix; None with too few seeds.
        ranking: mean ranks and their tests; None with too few seeds or strategies.
        reach: labels needed for shares of the full-data Dice; None without full-data runs.
        efficiency: foreground efficiency; None if the run folders do not carry it.
        target: the target Dice of the forecast; None if there is none.
        forecasts: one for each strategy.
        back_test: errors of the forecast on the curves themselves.
        queries: the acquired cases.
        query_places: where in the volumes the units of queries lie; empty without runs of regions.
        calibration: reliability histograms; may be empty.
        timings: the seconds of each round.
        differing: settings that differ between the runs.
    """

    run_set: RunSet
    curves: pd.DataFrame
    fitted: pd.DataFrame
    full: pd.DataFrame
    summaries: pd.DataFrame
    differences: pd.DataFrame
    final_differences: pd.DataFrame
    difference_curves: pd.DataFrame
    gains: Mapping[str, Gain]
    savings: pd.DataFrame
    matrix: pd.DataFrame | None
    ranking: Ranking | None
    reach: pd.DataFrame | None
    efficiency: pd.DataFrame | None
    target: float | None
    forecasts: tuple[Forecast, ...]
    back_test: pd.DataFrame
    queries: pd.DataFrame
    query_places: pd.DataFrame
    calibration: pd.DataFrame
    timings: pd.DataFrame
    differing: dict[str, tuple[str, ...]]

    @property
    def reference(self) -> str:
        """The strategy that the others are compared with."""
        return self.run_set.reference

    @property
    def labels(self) -> Mapping[str, str]:
        """How each strategy is called in tables and figures; says which ones read labels."""
        names = sorted({run.strategy for run in self.run_set.runs})
        dishonest = self.run_set.reads_labels
        return {name: f"{name} (reads labels)" if name in dishonest else name for name in names}

    @property
    def measure(self) -> Measure:
        """By which Dice the runs are compared."""
        return self.run_set.measure

    @property
    def cost_unit(self) -> str | None:
        """What the annotation cost counts; None if it is one a volume, unknown, or not the same."""
        units = {run.cost_unit for run in self.run_set.runs}
        known = "cost" in self.curves and self.curves["cost"].notna().all()
        return units.pop() if known and len(units) == 1 and units != {"volume"} else None

    @property
    def budget_label(self) -> str:
        """What the learning curves run along, such as ``labelled volumes``."""
        return self.run_set.budget_label

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs with a learning curve."""
        return tuple(sorted({int(seed) for seed in self.curves["seed"]}))


def analyse(run_set: RunSet, target: float | None = None) -> Comparison:
    """Compute a comparison.

    Args:
        run_set: as ``gather_runs`` gives it.
        target: Dice of the forecast; None for ``default_target``, if there are full-data runs.

    Raises:
        ConfigError: if the target is not in (0, 1], or the runs share no labelled count.
    """
    if target is not None and not 0 < target <= 1:
        raise ConfigError(f"--target-dice is {target}; it must be above 0 and at most 1")
    reference, rounds = run_set.reference, learning_curves(run_set)
    learning = rounds[~rounds["full_data"]].reset_index(drop=True)
    curves, at_all_costs = along(learning, run_set.budget)
    fitted = rounds_along(learning, run_set.budget)
    full = rounds[rounds["full_data"]].reset_index(drop=True)
    full_dice = None if full.empty else float(full["dice"].mean())
    if target is None and full_dice is not None:
        target = default_target(fitted, full_dice)
    summaries = statistics.run_summaries(at_all_costs)
    return Comparison(
        run_set=run_set,
        curves=curves,
        fitted=fitted,
        full=full,
        summaries=summaries,
        differences=statistics.differences_from_reference(summaries, reference),
        final_differences=statistics.differences_from_reference(summaries, reference, "final"),
        difference_curves=statistics.difference_curves(curves, reference),
        gains={
            name: gain
            for name in run_set.strategies
            if (gain := statistics.last_gain(curves, name)) is not None
        },
        savings=pd.concat(
            statistics.annotations_saved(at_all_costs, name, reference).assign(strategy=name)
            for name in run_set.strategies
        ),
        matrix=statistics.penalty_matrix(curves),
        ranking=statistics.rank_strategies(summaries),
        reach=(
            None
            if full_dice is None
            else statistics.labels_to_reach_shares(at_all_costs, full_dice)
        ),
        efficiency=statistics.foreground_efficiencies(learning, full),
        target=target,
        forecasts=forecasts(fitted, target, run_set.budget_label),
        back_test=back_test(fitted),
        queries=query_table(run_set),
        query_places=query_places(run_set),
        calibration=calibration_table(run_set),
        timings=timing_table(run_set),
        differing=differing_settings(run_set.runs),
    )


def forecasts(fitted: pd.DataFrame, target: float | None, label: str) -> tuple[Forecast, ...]:
    """The forecast of each strategy; none without a target."""
    if target is None:
        return ()
    by_strategy = [group for _, group in fitted.groupby("strategy")]
    return tuple(forecast(group, target, label=label) for group in by_strategy)


def default_target(curves: pd.DataFrame, full_dice: float) -> float:
    """95% of the full-data Dice; 99% if every strategy has reached that on average."""
    means = curves.groupby(["strategy", "labelled"])["dice"].mean()
    worst = float(means.groupby("strategy").max().min())
    targets = [share * full_dice for share in DEFAULT_TARGET_SHARES]
    return next((target for target in targets if worst < target), targets[-1])
