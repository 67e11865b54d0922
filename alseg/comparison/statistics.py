"""The statistics of a comparison: pure functions on tidy tables.

Runs are paired by an explicit join on the seed (and the labelled count), never by the order of
rows. Fewer than ``MIN_PAIRS`` pairs give neither an interval nor a p-value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import scikit_posthocs
from scipy import stats
from scipy.optimize import curve_fit

from alseg.comparison.budget import whole_if_it_is
from alseg.core.area_under_curve import area_under_budget_curve
from alseg.core.errors import ConfigError

MIN_PAIRS = 3
ALPHA = 0.05
NAN = float("nan")


@dataclass(frozen=True)
class Gain:
    """What the labels between two budgets brought.

    Attributes:
        before: the smaller labelled count.
        after: the larger one.
        n_seeds: how many runs it is the mean of.
        dice: mean gain of Dice.
        low: lower end of its 95% interval over seeds; NaN for fewer than ``MIN_PAIRS`` seeds.
        high: upper end.
    """

    before: float
    after: float
    n_seeds: int
    dice: float
    low: float
    high: float

    @property
    def slope(self) -> float:
        """Dice for each further labelled volume, or unit of another budget."""
        return self.dice / (self.after - self.before)

    @property
    def told_for(self) -> int:
        """The power of ten of units that the slope is told for: at least 1, at most the step."""
        return 10 ** max(0, math.floor(math.log10(self.after - self.before)))

    @property
    def told_slope(self) -> str:
        """Dice for ``told_for`` further units, of two significant digits."""
        dice = self.slope * self.told_for + 0.0  # no -0
        return np.format_float_positional(dice, 2, fractional=False, trim="-", sign=True)


def common_budgets(curves: pd.DataFrame) -> list[float]:
    """The labelled counts that every run has reached, increasing.

    Raises:
        ConfigError: if there is none.
    """
    by_run = [set(run["labelled"]) for _, run in curves.groupby(["strategy", "seed"])]
    budgets = sorted(set.intersection(*by_run))
    if not budgets:
        raise ConfigError("the runs have no labelled count in common, so they cannot be compared")
    return [whole_if_it_is(budget) for budget in budgets]


def run_summaries(curves: pd.DataFrame, value: str = "dice") -> pd.DataFrame:
    """One row a run: ``area`` under the budget curve and ``final`` Dice, over the common budgets.

    The area is that of ``alseg.core.area_under_curve.area_under_budget_curve`` (trapezoidal rule,
    divided by the range of budgets; Zhan et al., IJCAI 2021), a mean Dice in [0, 1].

    Args:
        curves: columns strategy, seed, labelled and ``value``; no full-data runs.
        value: the Dice column.
    """
    budgets = common_budgets(curves)
    rows = []
    for (strategy, seed), run in curves[curves["labelled"].isin(budgets)].groupby(
        ["strategy", "seed"]
    ):
        curve = run.sort_values("labelled")
        dice = curve[value].tolist()
        area = area_under_budget_curve(curve["labelled"].tolist(), dice)
        rows.append({"strategy": strategy, "seed": seed, "area": area, "final": dice[-1]})
    return pd.DataFrame(rows)


def pair_by_seed(
    table: pd.DataFrame, strategy: str, reference: str, value: str, on: Sequence[str] = ("seed",)
) -> pd.DataFrame:
    """Join two strategies on the seed: columns ``on``, ``value``, ``reference``, ``difference``.

    ``difference`` = value of the strategy - value of the reference. Seeds that only one of them has
    drop out.

    Raises:
        pandas.errors.MergeError: if a key appears twice on one side.
    """
    keys = list(on)
    left = table.loc[table["strategy"] == strategy, [*keys, value]]
    right = table.loc[table["strategy"] == reference, [*keys, value]]
    right = right.rename(columns={value: "reference"})
    paired = left.rename(columns={value: "value"}).merge(right, on=keys, validate="one_to_one")
    paired["difference"] = paired["value"] - paired["reference"]
    return paired.dropna().sort_values(keys, ignore_index=True)


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean: Student's t (Biometrika 6, 1908), as the paired t-test beside it.

    mean ± t_(n-1, 0.975) s / sqrt(n), s the standard deviation of the sample. NaN for fewer than
    ``MIN_PAIRS`` values.

    Rejected: the percentile bootstrap (Efron 1979). With as few seeds as a study has it is far too
    narrow: of 1500 samples of normal numbers its "95%" held the mean in 75% for 3, 83% for 5, 90%
    for 10.
    """
    sample = np.asarray(values, dtype=np.float64)
    n = len(sample)
    if n < MIN_PAIRS:
        return NAN, NAN
    half = float(stats.t.ppf(1 - ALPHA / 2, n - 1) * sample.std(ddof=1) / math.sqrt(n))
    return float(sample.mean()) - half, float(sample.mean()) + half


def paired_p_value(differences: Sequence[float]) -> float:
    """Two-sided p-value of the paired t-test; 1 if all differences are 0, NaN for too few pairs.

    Differences that are all the same number other than 0 give 0: their spread is 0.
    """
    sample = np.asarray(differences, dtype=np.float64)
    if len(sample) < MIN_PAIRS:
        return NAN
    if np.ptp(sample) == 0:
        return 1.0 if sample[0] == 0 else 0.0
    return float(stats.ttest_1samp(sample, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scand. J. Statist. 6, 1979); NaN values are no tests.

    The i-th smallest of m p-values becomes max over j <= i of min(1, (m - j + 1) p_(j)).
    Rejected: statsmodels' multipletests, which collects garbage on each call, a second in a
    process that holds torch; the tests use it as the oracle.
    """
    p = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(len(p), NAN)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN sorts last
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, factors * p[order]))
    return [float(value) for value in corrected]


def differences_from_reference(
    summaries: pd.DataFrame, reference: str, value: str = "area"
) -> pd.DataFrame:
    """Paired differences of each strategy from the reference.

    Columns: ``strategy``, ``n_pairs``, ``difference`` (mean over seeds), ``low`` and ``high`` (95%
    interval), ``p`` (paired t-test), ``p_holm`` (corrected over the strategies).
    """
    rows = []
    for strategy in sorted(set(summaries["strategy"]) - {reference}):
        differences = pair_by_seed(summaries, strategy, reference, value)["difference"]
        low, high = interval_of_mean(differences)
        rows.append(
            {
                "strategy": strategy,
                "n_pairs": len(differences),
                "difference": differences.mean() if len(differences) else NAN,
                "low": low,
                "high": high,
                "p": paired_p_value(differences),
            }
        )
    columns = ["strategy", "n_pairs", "difference", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p_holm=holm(table["p"].tolist()))


def difference_curves(curves: pd.DataFrame, reference: str, value: str = "dice") -> pd.DataFrame:
    """Paired differences from the reference at each labelled count.

    Columns: ``strategy``, ``labelled``, ``n_pairs``, ``difference``, ``low``, ``high``.
    """
    rows = []
    for strategy in sorted(set(curves["strategy"]) - {reference}):
        paired = pair_by_seed(curves, strategy, reference, value, on=("seed", "labelled"))
        for labelled, group in paired.groupby("labelled"):
            low, high = interval_of_mean(group["difference"])
            rows.append(
                {
                    "strategy": strategy,
                    "labelled": whole_if_it_is(labelled),
                    "n_pairs": len(group),
                    "difference": group["difference"].mean(),
                    "low": low,
                    "high": high,
                }
            )
    columns = ["strategy", "labelled", "n_pairs", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def mean_curves(curves: pd.DataFrame, value: str) -> pd.DataFrame:
    """Mean over seeds at each labelled count, with a 95% interval.

    Columns: ``strategy``, ``labelled``, ``n_seeds``, ``mean``, ``sd`` (of the sample), ``low``,
    ``high``; ``cost``, the mean annotation cost, where the curves carry one.
    """
    rows = []
    for (strategy, at), group in curves.groupby(["strategy", "labelled"]):
        dice = group[value].dropna()
        low, high = interval_of_mean(dice)
        rows.append(
            {
                "strategy": strategy,
                "labelled": at,
                "n_seeds": len(dice),
                "mean": dice.mean(),
                "sd": dice.std(ddof=1),
                "low": low,
                "high": high,
            }
            | ({"cost": group["cost"].mean()} if "cost" in group else {})
        )
    return pd.DataFrame(rows)


def penalty_matrix(curves: pd.DataFrame, value: str = "dice") -> pd.DataFrame | None:
    """Pairwise penalty matrix: the share of budgets at which the row's strategy beats the column's.

    At each common budget except the first (where all strategies have the same labelled volumes),
    every pair of strategies is compared by a paired t-test over seeds; a win adds
    1 / (number of budgets). A good strategy has large numbers in its row and small ones in its
    column. As in the source, the p-values are not corrected for the number of tests: of two equal
    strategies, each wins at one budget of forty by chance.

    Source: Ash et al., "Deep batch active learning by diverse, uncertain gradient lower bounds"
    (BADGE), ICLR 2020, section 4 and its ``agg_results.py``.

    Returns:
        The matrix, in [0, 1]; None if a pair has fewer than ``MIN_PAIRS`` seeds in common, or there
        is only one budget or one strategy.
    """
    names = sorted(set(curves["strategy"]))
    budgets = common_budgets(curves)[1:]
    if len(names) < 2 or not budgets:
        return None
    matrix = pd.DataFrame(0.0, index=names, columns=names)
    pairs = list(combinations(names, 2))
    for budget in budgets:
        at_budget = curves[curves["labelled"] == budget]
        by_seed = at_budget.pivot(index="seed", columns="strategy", values=value)
        for a, b in pairs:
            difference = (by_seed[a] - by_seed[b]).dropna().to_numpy()
            p = paired_p_value(difference)
            if math.isnan(p):
                return None
            if p < ALPHA:
                winner, loser = (a, b) if difference.mean() > 0 else (b, a)
                matrix.loc[winner, loser] += 1 / len(budgets)
    return matrix


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of k strategies over N seeds, with the tests of Demšar (JMLR 7, 2006).

    Attributes:
        mean_ranks: by strategy, best (lowest) first; ties share their mean rank.
        n_seeds: N, the seeds that all strategies have.
        statistic: Friedman's chi-squared.
        p: its p-value, the hypothesis being that all strategies are alike.
        critical_difference: q_α √(k(k+1) / (6N)), α = 0.05, with q_α the studentised range
            statistic for infinite degrees of freedom divided by √2; mean ranks that differ by less
            cannot be distinguished.
        nemenyi_p: p-values of all pairs by Nemenyi's test.
    """

    mean_ranks: pd.Series
    n_seeds: int
    statistic: float
    p: float
    critical_difference: float
    nemenyi_p: pd.DataFrame


def rank_strategies(summaries: pd.DataFrame, value: str = "area") -> Ranking | None:
    """Rank the strategies within each seed.

    Seeds are the blocks, where Demšar has data sets: the conclusion holds only for this data set.

    Returns:
        The ranking; None for fewer than 3 strategies or ``MIN_PAIRS`` seeds that all of them have.
    """
    wide = summaries.pivot(index="seed", columns="strategy", values=value).dropna()
    n_seeds, k = wide.shape
    if k < 3 or n_seeds < MIN_PAIRS:
        return None
    ranks = wide.rank(axis=1, ascending=False).mean().sort_values()
    all_tied = bool((wide.nunique(axis=1) == 1).all())
    test = stats.friedmanchisquare(*(wide[name] for name in wide)) if not all_tied else None
    q = stats.studentized_range.ppf(1 - ALPHA, k, np.inf) / math.sqrt(2)
    nemenyi = scikit_posthocs.posthoc_nemenyi_friedman(wide.to_numpy())
    return Ranking(
        mean_ranks=ranks,
        n_seeds=n_seeds,
        statistic=float(test.statistic) if test else 0.0,
        p=float(test.pvalue) if test else 1.0,
        critical_difference=float(q * math.sqrt(k * (k + 1) / (6 * n_seeds))),
        nemenyi_p=pd.DataFrame(nemenyi.to_numpy(), index=wide.columns, columns=wide.columns),
    )


def labels_to_reach(labelled: Sequence[float], dice: Sequence[float], target: float) -> float:
    """The labelled count at which a curve first reaches a Dice, linear between rounds.

    Infinite if it does not reach it; the first count if it starts there.
    """
    if dice[0] >= target:
        return float(labelled[0])
    for (n0, d0), (n1, d1) in zip(
        zip(labelled, dice, strict=True), zip(labelled[1:], dice[1:], strict=True), strict=False
    ):
        if d1 >= target:
            return float(n0 + (target - d0) / (d1 - d0) * (n1 - n0))
    return math.inf


def last_gain(curves: pd.DataFrame, strategy: str, value: str = "dice") -> Gain | None:
    """What the last labels of a strategy brought: the step between the last two common budgets.

    Gain = mean over seeds of Dice_s(n_2) - Dice_s(n_1), paired within each seed s, n_1 < n_2, with
    Student's t interval (see ``interval_of_mean``); its slope is the gain / (n_2 - n_1), that of
    the secant. It says nothing beyond n_2.

    Returns:
        The gain; None if the runs have only one budget in common.
    """
    budgets = common_budgets(curves)
    if len(budgets) < 2:
        return None
    before, after = budgets[-2:]
    wide = curves[curves["strategy"] == strategy].pivot(
        index="seed", columns="labelled", values=value
    )
    steps = (wide[after] - wide[before]).dropna()
    low, high = interval_of_mean(steps)
    return Gain(before, after, len(steps), float(steps.mean()), low, high)


def annotations_saved(
    curves: pd.DataFrame, strategy: str, reference: str, value: str = "dice"
) -> pd.DataFrame:
    """How many labels a strategy needs fewer than the reference for the same Dice, in each seed.

    In seed s, saved_s = n_s(reference, level_s) - n_s(strategy, level_s), where n_s(., d) is the
    labelled count at which the curve first reaches Dice d (``labels_to_reach``: linear between
    rounds), over the common budgets, and level_s = min(final Dice of the strategy, final Dice of
    the reference). Both curves reach that level by their last round, so no number is censored.
    It is the labelling efficiency of Beck et al. ("Effective evaluation of deep active learning on
    image classification tasks", arXiv:2106.15324), as a difference in place of their ratio.

    Rejected: the strategy's final Dice as the level. A reference that is worse never reaches it,
    and all that is known of such a seed is a lower bound near 0: the strategy, too, reaches its
    final Dice late. In which seeds that is so is reported (``reaches_final``).

    Columns: ``seed``, ``level`` (Dice), ``labelled`` and ``reference`` (what the strategy and the
    reference need for the level), ``saved``, ``reaches_final`` (whether the reference reaches the
    strategy's final Dice within the budget). Seeds that one of them lacks are left out.
    """
    budgets = common_budgets(curves)
    shared = curves[curves["labelled"].isin(budgets)]
    dice = {
        name: shared[shared["strategy"] == name].pivot(
            index="seed", columns="labelled", values=value
        )
        for name in (strategy, reference)
    }
    rows = []
    for seed in dice[strategy].index.intersection(dice[reference].index):
        of_strategy, of_reference = (dice[n].loc[seed].tolist() for n in (strategy, reference))
        level = min(of_strategy[-1], of_reference[-1])
        labelled = labels_to_reach(budgets, of_strategy, level)
        of_reference_needed = labels_to_reach(budgets, of_reference, level)
        rows.append(
            {
                "seed": seed,
                "level": level,
                "labelled": labelled,
                "reference": of_reference_needed,
                "saved": of_reference_needed - labelled,
                "reaches_final": max(of_reference) >= of_strategy[-1],
            }
        )
    columns = ["seed", "level", "labelled", "reference", "saved", "reaches_final"]
    return pd.DataFrame(rows, columns=columns)


def labels_to_reach_shares(
    curves: pd.DataFrame,
    full_dice: float,
    shares: Sequence[float] = (0.90, 0.95, 0.99),
    value: str = "dice",
) -> pd.DataFrame:
    """The labelled volumes that each strategy needs for a share of the full-data Dice.

    Columns: ``strategy``, ``share``, ``target`` (Dice), ``n_runs``, ``n_reached``, ``median`` over
    the runs (infinite if fewer than half of them reach it).
    """
    rows = []
    for strategy, group in curves.groupby("strategy"):
        runs = [run.sort_values("labelled") for _, run in group.groupby("seed")]
        for share in shares:
            target = share * full_dice
            needed = [
                labels_to_reach(run["labelled"].tolist(), run[value].tolist(), target)
                for run in runs
            ]
            n_reached = sum(map(math.isfinite, needed))
            # the upper median: an average of a number and infinity would be infinite anyway
            median = float(np.median(needed)) if 2 * n_reached > len(needed) else math.inf
            rows.append(
                {
                    "strategy": strategy,
                    "share": share,
                    "target": target,
                    "n_runs": len(needed),
                    "n_reached": n_reached,
                    "median": median,
                }
            )
    return pd.DataFrame(rows)


def foreground_efficiency(
    share: Sequence[float], dice: Sequence[float], start_dice: float, full_dice: float
) -> float:
    """Foreground efficiency γ: how fast annotated foreground brings Dice to that of the full data.

    Least-squares fit of Dice(x) = y_full - (y_full - y_start) exp(-γ (x - x_start)), where x is the
    share of the training set's foreground voxels that are annotated; larger is better.
    Source: Lüth et al., "nnActive", TMLR 2025.

    Args:
        share: x of each round, in (0, 1].
        dice: the Dice of each round.
        start_dice: the mean Dice at the smallest x, y_start.
        full_dice: the mean full-data Dice, y_full.

    Returns:
        γ, in 1 / share; NaN if the fit has nothing to go by.
    """
    x, y = np.asarray(share, dtype=np.float64), np.asarray(dice, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or full_dice <= start_dice:
        return NAN

    def curve(at: np.ndarray, gamma: float) -> np.ndarray:
        return full_dice - (full_dice - start_dice) * np.exp(-gamma * (at - x.min()))

    (gamma,), _ = curve_fit(curve, x, y, p0=[1 / np.ptp(x)])
    return float(gamma)


def foreground_efficiencies(
    curves: pd.DataFrame, full: pd.DataFrame, value: str = "dice"
) -> pd.DataFrame | None:
    """Foreground efficiency by strategy, over the rounds of all seeds.

    It has an axis of its own, the annotated foreground, so it takes the rounds as they are,
    whatever a comparison runs along; its start is the mean over the first rounds of all runs. Needs
    a column ``foreground_voxels`` (annotated foreground voxels up to the round) in the histories
    and full-data runs, which give the whole.

    Returns:
        Columns ``strategy``, ``foreground_efficiency``; None if the data do not carry it.
    """
    if full.empty or "foreground_voxels" not in curves or curves["foreground_voxels"].isna().any():
        return None
    shares = curves["foreground_voxels"] / full["foreground_voxels"].mean()
    first = curves.groupby(["strategy", "seed"])["labelled"].idxmin()
    start = curves.loc[first, value].mean()
    return pd.DataFrame(
        [
            {
                "strategy": strategy,
                "foreground_efficiency": foreground_efficiency(
                    shares[group.index], group[value], float(start), float(full[value].mean())
                ),
            }
            for strategy, group in curves.groupby("strategy")
        ]
    )


def calibration_errors(histograms: pd.DataFrame) -> pd.DataFrame:
    """Expected calibration error by strategy and round, all seeds' voxels together.

    ECE = Σ_bins n/N |accuracy - confidence| (Naeini et al., AAAI 2015), in [0, 1].
    """
    bins = reliability(histograms)
    gap = (bins["accuracy"] - bins["confidence"]).abs() * bins["n_voxels"]
    keys = [bins["strategy"], bins["round"]]
    error = gap.groupby(keys).sum() / bins["n_voxels"].groupby(keys).sum()
    return error.rename("ece").reset_index()


def reliability(histograms: pd.DataFrame) -> pd.DataFrame:
    """Reliability histograms with the seeds' bins merged, weighted by voxels; no empty bins."""
    filled = histograms[histograms["n_voxels"] > 0]
    keys = ["strategy", "round", "bin_low", "bin_high"]
    weighted = filled.assign(
        confidence=filled["confidence"] * filled["n_voxels"],
        accuracy=filled["accuracy"] * filled["n_voxels"],
    )
    merged = weighted.groupby(keys)[["n_voxels", "confidence", "accuracy"]].sum().reset_index()
    for name in ("confidence", "accuracy"):
        merged[name] /= merged["n_voxels"]
    return merged


def seconds_table(timings: pd.DataFrame) -> pd.DataFrame:
    """Mean wall-clock seconds of a run, by strategy and by what they were spent on.

    Args:
        timings: as ``timing_table`` gives them.
    """
    names = [f"{part}_seconds" for part in ("training", "evaluation", "scoring", "preprocessing")]
    names = [name for name in names if name in timings]
    by_run = timings.groupby(["strategy", "seed"])[names].sum()
    return by_run.groupby("strategy").mean().reset_index()
