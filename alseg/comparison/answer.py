"""The answer in plain sentences: which is better, by how much, how sure, how many more."""

from __future__ import annotations

import math

import pandas as pd

from alseg.comparison.analysis import Comparison
from alseg.comparison.statistics import ALPHA, MIN_PAIRS, common_budgets


def sentences(comparison: Comparison) -> list[str]:
    """The answer, the most important sentence first."""
    return [
        _best(comparison),
        _certainty(comparison),
        *_full_data(comparison),
        *_forecast(comparison),
        *_caveats(comparison),
    ]


def best_strategy(comparison: Comparison) -> str:
    """The strategy of the highest mean area; one that reads hidden labels does not compete."""
    areas = comparison.summaries.groupby("strategy")["area"].mean()
    honest = [name for name in areas.index if name not in comparison.run_set.reads_labels]
    return str(areas[honest or list(areas.index)].idxmax())


def _difference(comparison: Comparison, strategy: str) -> pd.Series:
    table = comparison.differences
    return table[table["strategy"] == strategy].iloc[0]


def _best(comparison: Comparison) -> str:
    areas = comparison.summaries.groupby("strategy")["area"].mean()
    best, reference = best_strategy(comparison), comparison.reference
    if len(areas) == 1:
        return f"Only {reference} has runs: mean test Dice over the budget {areas[reference]:.3f}."
    if best == reference:
        return (
            f"No strategy was better than {reference}: its mean test Dice over the budget is "
            f"{areas[reference]:.3f}, the highest here."
        )
    row = _difference(comparison, best)
    interval = (
        "" if math.isnan(row["low"])
        else f" (95% interval {row['low']:+.3f} to {row['high']:+.3f})"
    )  # fmt: skip
    budgets = common_budgets(comparison.curves)
    return (
        f"{best} was the best strategy: from {budgets[0]} to {budgets[-1]} labelled volumes its "
        f"mean test Dice was {areas[best]:.3f}, against {areas[reference]:.3f} for {reference}; "
        f"paired by seed, a difference of {row['difference']:+.3f}{interval}."
    )


def _certainty(comparison: Comparison) -> str:
    best = best_strategy(comparison)
    if comparison.differences.empty:
        return "There is nothing to compare it with."
    if best == comparison.reference:
        rows = comparison.differences
        n_pairs = int(rows["n_pairs"].min())
        if n_pairs < MIN_PAIRS:
            return too_few_seeds(n_pairs)
        worse = rows[(rows["p_holm"] < ALPHA) & (rows["difference"] < 0)]["strategy"]
        names = ", ".join(worse)
        return (
            f"Worse than it beyond chance: {names} (paired t-tests, Holm-corrected)."
            if names
            else f"None of the others differs from it beyond chance ({n_pairs} seeds)."
        )
    row = _difference(comparison, best)
    n_pairs = int(row["n_pairs"])
    if n_pairs < MIN_PAIRS:
        return too_few_seeds(n_pairs)
    verdict = "is unlikely to be chance" if row["p_holm"] < ALPHA else "may well be chance"
    few = "" if n_pairs >= 10 else " More seeds would make this surer."
    return (
        f"With {n_pairs} seeds this difference {verdict} (paired t-test, Holm-corrected over "
        f"{len(comparison.differences)} comparisons, p = {p_text(row['p_holm'])}).{few}"
    )


def too_few_seeds(n_pairs: int) -> str:
    """The sentence that stands in place of a p-value."""
    few = "1 seed in common is" if n_pairs == 1 else f"{n_pairs} seeds in common are"
    return (
        f"{few} too few for a test or an interval: run at least "
        f"{MIN_PAIRS} seeds of each strategy before you conclude anything."
    )


def p_text(p: float) -> str:
    """A p-value as people write it: no more digits than it has meaning."""
    return "below 0.001" if p < 0.001 else f"{p:.3f}"


def _full_data(comparison: Comparison) -> list[str]:
    if comparison.full.empty:
        return []
    full_dice = float(comparison.full["test_dice"].mean())
    best = best_strategy(comparison)
    finals = comparison.summaries.groupby("strategy")["final"].mean()
    return [
        f"Training on all {comparison.full['labelled'].iloc[0]} volumes gives test Dice "
        f"{full_dice:.3f}; {best} ended at {finals[best]:.3f}, "
        f"{finals[best] / full_dice:.1%} of it."
    ]


def _forecast(comparison: Comparison) -> list[str]:
    if comparison.target is None:
        return [
            "No forecast: give --target-dice, or add runs of strategy=full, whose Dice sets the "
            "target."
        ]
    wanted = dict.fromkeys((best_strategy(comparison), comparison.reference))
    n_volumes = comparison.run_set.runs[0].n_volumes
    return [
        item.statement + (
            f" That is more than the {n_volumes} volumes of the training set."
            if item.volumes is not None and item.volumes > n_volumes else ""
        )
        for name in wanted for item in comparison.forecasts if item.strategy == name
    ]  # fmt: skip


def _caveats(comparison: Comparison) -> list[str]:
    found = []
    left_out = comparison.run_set.left_out
    if left_out:
        runs = "run was" if len(left_out) == 1 else "runs were"
        found.append(f"{len(left_out)} {runs} left out; the last section lists them.")
    if any(not run.complete for run in comparison.run_set.runs):
        found.append("Runs that have not finished are included, over the rounds all runs have.")
    if comparison.run_set.reads_labels:
        names = ", ".join(sorted(comparison.run_set.reads_labels))
        found.append(
            f"{names}: sees hidden labels, so it cannot be used in practice and does not compete."
        )
    if comparison.differing:
        found.append(
            "The runs differ in other settings too, which may be what the differences come from: "
            + "; ".join(f"{n} ({', '.join(v)})" for n, v in list(comparison.differing.items())[:8])
            + "."
        )
    return found
