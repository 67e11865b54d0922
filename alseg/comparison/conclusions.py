"""The answer in plain sentences: which is better, by how much, how sure, how many more."""

from __future__ import annotations

import math

import pandas as pd

from alseg.comparison.analysis import Comparison
from alseg.comparison.statistics import (
    ALPHA,
    MIN_PAIRS,
    common_budgets,
    interval_of_mean,
    pair_by_seed,
)
from alseg.run.measure import CROSS, TEST


def sentences(comparison: Comparison) -> list[str]:
    """The answer, the most important sentence first."""
    return [
        _best(comparison),
        *_without_test_part(comparison),
        _certainty(comparison),
        *_full_data(comparison),
        *_more_labels(comparison),
        *_saved(comparison),
        *_forecast(comparison),
        *_caveats(comparison),
    ]


def _without_test_part(comparison: Comparison) -> list[str]:
    """Why a comparison without a test part is none to publish."""
    if comparison.measure is TEST:
        return []
    if comparison.measure is CROSS:
        return [
            "There is no test part (validation=cross): each Dice is of all annotated cases, which "
            "are others for each strategy and round. It guides your own campaign and is not a fair "
            "comparison of strategies."
        ]
    return [
        "There is no test part (data/splits=growing): each Dice is of the annotated cases that "
        "validate, which are others for each strategy and round, and choose the weights too. It "
        "guides your own campaign and is not a fair comparison of strategies."
    ]


def best_strategy(comparison: Comparison) -> str:
    """The strategy of the highest area, paired by seed with the reference's.

    One that reads hidden labels does not compete.
    """
    return _ranked(comparison)[0]


def _ranked(comparison: Comparison) -> list[str]:
    """The strategies that compete, the best first.

    By the difference of their areas from the reference's over the seeds that both have: a mean over
    other seeds is of other labels. Those without a common seed come last, by their mean area.
    """
    table = pd.DataFrame({"area": comparison.summaries.groupby("strategy")["area"].mean()})
    table["difference"] = comparison.differences.set_index("strategy")["difference"]
    table.loc[comparison.reference, "difference"] = 0.0
    order = table.sort_values(["difference", "area"], ascending=False).index
    honest = [name for name in order if name not in comparison.run_set.reads_labels]
    return [str(name) for name in honest or order]


def _difference(comparison: Comparison, strategy: str) -> pd.Series:
    table = comparison.differences
    return table[table["strategy"] == strategy].iloc[0]


def _best(comparison: Comparison) -> str:
    areas = comparison.summaries.groupby("strategy")["area"].mean()
    reference = comparison.reference
    if len(areas) == 1:
        dice = f"mean {comparison.measure.title} over the budget {areas[reference]:.3f}"
        return f"Only {reference} has runs: {dice}."
    ranked = _ranked(comparison)
    best = ranked[0]
    if best != reference:
        other, sign = reference, 1
        row = _difference(comparison, best)
    else:  # against the next one
        other, sign = next(n for n in [*ranked[1:], *areas.index] if n != best), -1
        row = _difference(comparison, other)
    n_pairs, difference = int(row["n_pairs"]), sign * row["difference"]
    low, high = sorted((sign * row["low"], sign * row["high"]))
    if n_pairs < MIN_PAIRS:
        verdict = "came out highest, with too few seeds for a test"
    elif row["p_holm"] < ALPHA and difference > 0:
        verdict = "was the best strategy"
    else:
        verdict = "came out highest, which may well be chance"
    budgets = common_budgets(comparison.curves)
    paired = (
        "they have no seed in common" if n_pairs == 0
        else f"paired by seed, a difference of {difference:+.3f}{_interval(low, high)}"
    )  # fmt: skip
    pairs = pair_by_seed(comparison.summaries, best, other, "area")
    ours, theirs = pairs[["value", "reference"]].mean() if n_pairs else areas[[best, other]]
    n_seeds = comparison.summaries["seed"].nunique()
    of_seeds = f" of {n_pairs} seeds" if 0 < n_pairs < n_seeds else ""
    return (
        f"{best} {verdict}: from {budgets[0]} to {budgets[-1]} {comparison.budget_label} its mean "
        f"{comparison.measure.title}{of_seeds} was {ours:.3f}, against {theirs:.3f} for {other}; "
        f"{paired}."
    )


def _interval(low: float, high: float, form: str = "+.3f") -> str:
    """An interval in brackets; nothing where there is none."""
    return "" if math.isnan(low) else f" (95% interval {low:{form}} to {high:{form}})"


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
            f"Worse than {best} beyond chance: {names} (paired t-tests, Holm-corrected)."
            if names
            else f"None of the others differs from {best} beyond chance ({n_pairs} seeds)."
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
    full_dice = float(comparison.full["dice"].mean())
    best = best_strategy(comparison)
    finals = comparison.summaries.groupby("strategy")["final"].mean()
    return [
        f"Training on all {comparison.full['labelled'].iloc[0]} volumes gives "
        f"{comparison.measure.label} {full_dice:.3f}; {best} ended at {finals[best]:.3f}, "
        f"{finals[best] / full_dice:.1%} of it."
    ]


def _more_labels(comparison: Comparison) -> list[str]:
    """Whether labelling more still helps the best strategy."""
    best = best_strategy(comparison)
    gain = comparison.gains.get(best)
    if gain is None:
        return []
    if math.isnan(gain.low):
        seeds = "1 seed" if gain.n_seeds == 1 else f"{gain.n_seeds} seeds"
        verdict = f"Whether labelling more still helps cannot be said from {seeds}"
    elif gain.low > 0:
        verdict = "Labelling more still helps"
    elif gain.high < 0:
        verdict = "Labelling more no longer helps"
    else:
        verdict = "Whether labelling more still helps is not certain"
    units = "" if gain.told_for == 1 else f" {gain.told_for:,}"
    return [
        f"{verdict}: from {gain.before} to {gain.after} {comparison.budget_label} the "
        f"{comparison.measure.label} of {best} changed by "
        f"{gain.dice:+.3f}{_interval(gain.low, gain.high)}, {gain.told_slope} for each{units}."
    ]


def _saved(comparison: Comparison) -> list[str]:
    """How many annotations the best strategy saved against the reference."""
    best, reference = best_strategy(comparison), comparison.reference
    rows = comparison.savings[comparison.savings["strategy"] == best]
    if best == reference or rows.empty:
        return []
    saved = float(rows["saved"].mean())
    low, high = interval_of_mean(rows["saved"])
    if math.isnan(low):
        seeds = "1 seed" if len(rows) == 1 else f"{len(rows)} seeds"
        verdict = f"How many annotations {best} saved cannot be said from {seeds}"
    elif low > 0:
        verdict = f"{best} saved annotations"
    elif high < 0:
        verdict = f"{best} cost annotations"
    else:
        verdict = f"Whether {best} saved annotations is not certain"
    fewer = saved >= 0
    span = _interval(low, high, ".1f") if fewer else _interval(-high, -low, ".1f")
    sentence = (
        f"{verdict}: for the {comparison.measure.label} that both reach, it needed "
        f"{rows['labelled'].mean():.1f} {comparison.budget_label} where {reference} needed "
        f"{rows['reference'].mean():.1f}, "
        f"{abs(saved):.1f} {'fewer' if fewer else 'more'}{span}."
    )
    n_never = int((~rows["reaches_final"]).sum())
    if n_never:
        sentence += (
            f" In {n_never} of {len(rows)} seeds {reference} never reached the final Dice of "
            f"{best}: that takes it more than {common_budgets(comparison.curves)[-1]}."
        )
    return [sentence]


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
            if comparison.budget_label == "labelled volumes"
            and item.volumes is not None and item.volumes > n_volumes else ""
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
    seeds = comparison.summaries.groupby("strategy")["seed"].agg(frozenset)
    if len(set(seeds)) > 1:
        found.append(
            "Not all strategies have the same seeds, so their means are of different labels; "
            "compare them by the differences, which are paired by seed."
        )
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
