"""The tables of a comparison, for people (HTML, LaTeX) and for programs (CSV)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import pandas as pd

from alseg.comparison.analysis import Comparison
from alseg.comparison.budget import BUDGETS, OF_REGIONS, whole_if_it_is
from alseg.comparison.conclusions import p_text, too_few_seeds
from alseg.comparison.query_places import PLACES
from alseg.comparison.statistics import (
    ALPHA,
    MIN_PAIRS,
    calibration_errors,
    interval_of_mean,
    mean_curves,
    seconds_table,
)
from alseg.core.metric_names import TITLES
from alseg.curves.forecast import amount, bound
from alseg.run.measure import cost_axis
from alseg.system.text import capitalised, printable

_PLACE_TITLES = {
    "inner": "inside foreground",
    "boundary": "on a boundary",
    "background": "background",
}


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: of its files.
        caption: what it shows, with units.
        data: the numbers, tidy: what the CSV holds.
        shown: the text that people read, one column a heading; the first column names the row.
        notes: what it says below: definitions, sources, missing tests.
    """

    name: str
    caption: str
    data: pd.DataFrame
    shown: pd.DataFrame
    notes: tuple[str, ...] = field(default=())


def all_tables(comparison: Comparison) -> list[Table]:
    """The tables that the data carry, in the order of the page."""
    classes, measure = comparison.run_set.classes, comparison.measure
    tables = [
        summary_table(comparison),
        dice_table(comparison, "dice", "dice", f"Mean {measure.title}"),
        *(
            dice_table(
                comparison,
                f"dice_{name}",
                f"dice_{index}",
                f"{capitalised(measure.label)} of {name}",
            )
            for index, name in enumerate(classes, 1)
        ),
    ]
    tables += metric_tables(comparison)
    if comparison.cost_unit is not None:
        tables.append(cost_table(comparison))
    tables += [difference_table(comparison), saving_table(comparison)]
    if comparison.gains:
        tables.append(gain_table(comparison))
    tables.append(penalty_table(comparison))
    tables.append(rank_table(comparison))
    tables.append(reach_table(comparison))
    if comparison.efficiency is not None:
        tables.append(efficiency_table(comparison))
    if comparison.forecasts:
        tables.append(forecast_table(comparison))
    if not comparison.back_test.empty:
        tables.append(back_test_table(comparison))
    if not comparison.calibration.empty:
        tables.append(calibration_table(comparison))
    if not comparison.queries.empty:
        tables.append(query_table(comparison))
    if not comparison.query_places.empty:
        tables += [query_places_table(comparison), effort_table(comparison)]
    tables.append(clock_table(comparison))
    return tables


def metric_tables(comparison: Comparison) -> list[Table]:
    """Of each metric beside Dice that the runs have, its mean and that of each class."""
    tables = []
    for metric in comparison.run_set.further_metrics:
        title = f"{comparison.measure.name} {TITLES[metric]}"
        tables.append(dice_table(comparison, metric, metric, f"Mean {title}"))
        for index, name in enumerate(comparison.run_set.classes, 1):
            caption = f"{capitalised(title)} of {name}"
            tables.append(dice_table(comparison, f"{metric}_{name}", f"{metric}_{index}", caption))
    return tables


def number(value: float, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval(low: float, high: float, form: str = "+.3f") -> str:
    """An interval, or a dash where there is none."""
    return "–" if math.isnan(low) else f"{low:{form}} to {high:{form}}"


def with_spread(mean: float, spread: float) -> str:
    """Mean ± standard deviation; only the mean for a single run."""
    return number(mean) if math.isnan(spread) else f"{mean:.3f} ± {spread:.3f}"


def _shown(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, dtype=str)


def _matrix(
    corner: str, columns: Sequence[str], rows: Iterable[tuple[str, Mapping[str, str]]]
) -> pd.DataFrame:
    """A table with a column for each strategy, whatever they are called; a dash where one lacks.

    Args:
        corner: the heading of the first column.
        columns: the strategies' labels.
        rows: of each row its name and its cells by label.
    """
    cells = [[name, *(row.get(column, "–") for column in columns)] for name, row in rows]
    return pd.DataFrame(cells, columns=[corner, *columns], dtype=str)


def _seed_note(comparison: Comparison) -> tuple[str, ...]:
    pairs = comparison.differences["n_pairs"]
    n_pairs = int(pairs.min()) if len(pairs) else len(comparison.seeds)
    return () if n_pairs >= MIN_PAIRS else (too_few_seeds(n_pairs),)


def _read_off(comparison: Comparison) -> tuple[str, ...]:
    """What the budgets of a table are, where they are not the labelled counts of rounds."""
    if comparison.run_set.budget == "labelled":
        return ()
    return (
        f"At even budgets of {comparison.budget_label}, of which there are as many as the shortest "
        "run has rounds; each run is read off linearly between its own rounds.",
    )


def summary_table(comparison: Comparison) -> Table:
    """Area under the budget curve and final Dice of each strategy, and the full-data Dice."""
    groups = comparison.summaries.groupby("strategy")
    data = groups[["area", "final"]].agg(["mean", "std"])
    data.columns = [f"{value}_{what}" for value, what in data.columns]
    data = data.assign(n_seeds=groups.size()).reset_index()
    data = data.sort_values("area_mean", ascending=False, ignore_index=True)
    rows = [
        {
            "strategy": comparison.labels[row["strategy"]],
            "seeds": str(row["n_seeds"]),
            "area under the budget curve": with_spread(row["area_mean"], row["area_std"]),
            "final Dice": with_spread(row["final_mean"], row["final_std"]),
        }
        for row in data.to_dict("records")
    ]
    if not comparison.full.empty:
        dice = comparison.full["dice"]
        names = comparison.full["strategy"].unique()
        rows.append(
            {
                "strategy": f"{', '.join(comparison.labels[n] for n in names)} (all volumes)",
                "seeds": str(len(dice)),
                "area under the budget curve": "–",
                "final Dice": with_spread(dice.mean(), dice.std(ddof=1)),
            }
        )
    over = (
        "the labelled counts that all runs reached"
        if comparison.run_set.budget == "labelled"
        else "the costs of all rounds within what all runs reached, each run linear between its own"
    )
    return Table(
        "summary",
        f"{capitalised(comparison.measure.title)} by strategy, mean ± standard deviation over "
        "seeds, the best first",
        data,
        _shown(rows),
        (f"Area: trapezoidal rule over {over}, divided by their range; a mean Dice over the budget "
         "(Zhan et al., IJCAI 2021).",),
    )  # fmt: skip


def dice_table(comparison: Comparison, value: str, name: str, caption: str) -> Table:
    """Dice, or another metric, of each strategy at each labelled count."""
    data = mean_curves(comparison.curves, value)
    rows = [
        (
            f"{labelled:.15g}",
            {
                comparison.labels[row["strategy"]]: with_spread(row["mean"], row["sd"])
                for row in group.to_dict("records")
            },
        )
        for labelled, group in data.groupby("labelled")
    ]
    columns = [comparison.labels[name] for name in comparison.run_set.strategies]
    number_of = "number of " if comparison.run_set.budget == "labelled" else ""
    return Table(
        name,
        f"{caption} by {number_of}{comparison.budget_label}, mean ± standard deviation over seeds",
        data,
        _matrix(comparison.budget_label, columns, rows),
    )


def mean_steps(
    comparison: Comparison, curves: pd.DataFrame, columns: Sequence[str]
) -> pd.DataFrame:
    """Means over seeds: of each round, or at each budget where runs are read off between rounds."""
    step = "round" if comparison.run_set.budget == "labelled" else "labelled"
    wanted = [column for column in columns if column != step]
    return curves.groupby(["strategy", step])[wanted].mean().reset_index()


def shown_step(comparison: Comparison, row: Mapping[Hashable, Any]) -> dict[str, str]:
    """The column of a row of ``mean_steps`` that says which round or budget it is of."""
    if "round" in row:
        return {"round": str(row["round"])}
    return {comparison.budget_label: f"{row['labelled']:,.15g}"}


def cost_table(comparison: Comparison) -> Table:
    """Dice against the annotation cost, round by round."""
    axis = cost_axis(str(comparison.cost_unit))
    data = mean_steps(comparison, comparison.curves, ["labelled", "cost", "dice"])
    rows = [
        {
            "strategy": comparison.labels[row["strategy"]],
            **shown_step(comparison, row),
            axis: f"{row['cost']:,.0f}",
            comparison.measure.label: number(row["dice"]),
        }
        for row in data.to_dict("records")
    ]
    return Table(
        "cost",
        f"{capitalised(comparison.measure.title)} by annotation cost, means over seeds",
        data,
        _shown(rows),
    )


def difference_table(comparison: Comparison) -> Table:
    """Paired differences from the reference."""
    measures = {"area": comparison.differences, "final Dice": comparison.final_differences}
    data = pd.concat([table.assign(of=name) for name, table in measures.items()])
    rows = [
        {
            "strategy": comparison.labels[row["strategy"]],
            "of": row["of"],
            "pairs": str(row["n_pairs"]),
            "difference": "–" if math.isnan(row["difference"]) else f"{row['difference']:+.3f}",
            "95% interval": interval(row["low"], row["high"]),
            "p (Holm)": "–" if math.isnan(row["p_holm"]) else p_text(row["p_holm"]),
        }
        for row in data.to_dict("records")
    ]
    return Table(
        "differences",
        f"Differences from {comparison.labels[comparison.reference]}, paired by seed",
        data,
        _shown(rows),
        (
            *_seed_note(comparison),
            "Interval: Student's t for the mean over seeds, 95%, not corrected for the number of "
            "strategies. p: two-sided paired t-test, Holm-corrected over them (Holm 1979).",
        ),
    )


def saving_table(comparison: Comparison) -> Table:
    """Labels that each strategy saved against the reference."""
    data = comparison.savings[comparison.savings["strategy"] != comparison.reference]
    reference = comparison.labels[comparison.reference]
    rows = []
    for strategy, group in data.groupby("strategy"):
        never = int((~group["reaches_final"]).sum())
        rows.append(
            {
                "strategy": comparison.labels[strategy],
                "pairs": str(len(group)),
                "needed": f"{group['labelled'].mean():.1f}",
                "the reference needed": f"{group['reference'].mean():.1f}",
                "saved": f"{group['saved'].mean():+.1f}",
                "95% interval": interval(*interval_of_mean(group["saved"]), "+.1f"),
                "reference below at the end": f"{never} of {len(group)}",
            }
        )
    return Table(
        "annotations_saved",
        f"{capitalised(comparison.budget_label)} for the same Dice, against {reference}, paired by "
        "seed",
        data,
        _shown(rows),
        (
            *_seed_note(comparison),
            "For the Dice that both curves of a seed reach by their last round, read off linearly "
            "between rounds (Beck et al., arXiv:2106.15324, as a difference). The last column: "
            "seeds in which the reference never reached the strategy's final Dice, so that what it "
            "would need for that is not known. Intervals are not corrected for the number of "
            "strategies.",
        ),
    )


def gain_table(comparison: Comparison) -> Table:
    """What the last labels of each strategy brought."""
    data = pd.DataFrame(
        [
            {"strategy": name} | asdict(gain) | {"slope": gain.slope}
            for name, gain in comparison.gains.items()
        ]
    )
    rows = [
        {
            "strategy": comparison.labels[name],
            "seeds": str(gain.n_seeds),
            "change of Dice": f"{gain.dice:+.3f}",
            "95% interval": interval(gain.low, gain.high),
            "for each" if gain.told_for == 1 else f"for each {gain.told_for:,}": gain.told_slope,
        }
        for name, gain in comparison.gains.items()
    ]
    some = next(iter(comparison.gains.values()))
    return Table(
        "last_gain",
        f"Change of {comparison.measure.label} from {some.before} to {some.after} "
        f"{comparison.budget_label}",
        data,
        _shown(rows),
        (*_read_off(comparison),
         "Mean over seeds of the step within each seed; what further labels would bring is the "
         "forecast's question."),
    )  # fmt: skip


def query_table(comparison: Comparison) -> Table:
    """How often and when each case was acquired."""
    data = comparison.queries
    n_runs = len(data[["strategy", "seed"]].drop_duplicates())
    cases = data.groupby("case_id")["round"].agg(["size", "min", "median"])
    cases = cases.sort_values(["median", "size"], ascending=[True, False], kind="stable")
    rows = [
        {
            "case": str(case_id),
            "acquired by": f"{row['size']:.0f} of {n_runs} runs",
            "first after round": f"{row['min']:.0f}",
            "median round": f"{row['median']:g}",
        }
        for case_id, row in cases.iterrows()
    ]
    return Table(
        "queries",
        "Cases by the round after which they were acquired (0: initial), the earliest first",
        data,
        _shown(rows),
    )


def query_places_table(comparison: Comparison) -> Table:
    """Where in the volumes each strategy asks."""
    data = comparison.query_places
    mean = data.groupby(["strategy", "round"])[[*PLACES, "n_classes", "n_regions"]].mean()
    rows = [
        {
            "strategy": comparison.labels[str(strategy)],
            "after round": f"{number}",
            "regions": f"{row['n_regions']:g}",
            **{_PLACE_TITLES[place]: f"{row[place]:.1%}" for place in PLACES},
            "classes": f"{row['n_classes']:.1f} of {len(comparison.run_set.classes)}",
        }
        for (strategy, number), row in mean.iterrows()  # type: ignore[misc]
    ]
    return Table(
        "query_places",
        "Where in the volumes each strategy asks: shares of the annotated voxels of its queries, "
        "means over seeds (after round 0: the initial regions)",
        data,
        _shown(rows),
        ("On a boundary: beside a voxel of another class within the region. Classes: foreground "
         "classes in the regions of one query.",),
    )  # fmt: skip


def effort_table(comparison: Comparison) -> Table:
    """Dice against all that annotating regions took, round by round."""
    columns = {name: f"annotated_{name}" for name in OF_REGIONS}
    curves = comparison.curves.dropna(subset=list(columns.values()))
    data = mean_steps(comparison, curves, ["labelled", *columns.values(), "dice"])
    rows = [
        {
            "strategy": comparison.labels[row["strategy"]],
            **shown_step(comparison, row),
            **({comparison.budget_label: f"{row['labelled']:,g}"} if "round" in row else {}),
            **{
                BUDGETS[name]: f"{row[column]:,.0f}"
                for name, column in columns.items()
                if name != comparison.run_set.budget
            },
            comparison.measure.label: number(row["dice"]),
        }
        for row in data.to_dict("records")
    ]
    return Table(
        "effort",
        f"{capitalised(comparison.measure.title)} and what annotating the regions took, means "
        "over seeds",
        data,
        _shown(rows),
        ("Minutes of effort are a model, set by effort.* of each run.",),
    )


def penalty_table(comparison: Comparison) -> Table:
    """The pairwise penalty matrix."""
    matrix = comparison.matrix
    source = source_of_penalty()
    if matrix is None:
        note = "No matrix: it takes two strategies, two budgets and "
        note += f"{MIN_PAIRS} seeds that all strategies have in common."
        empty = pd.DataFrame()
        return Table("penalty", "Pairwise penalty matrix", empty, empty, (note, source))
    return matrix_table(matrix, comparison.labels, (*_read_off(comparison), source))


def source_of_penalty(over: str = "") -> str:
    """What a pairwise penalty matrix holds, and what it is over beside budgets."""
    return (
        "Share of the budgets behind the first at which the row's strategy beats the column's "
        f"(paired t-test over seeds, α = {ALPHA}){over}. A good strategy has large numbers in its "
        "row and small ones in its column (Ash et al., ICLR 2020). The tests are not corrected for "
        f"their number: equal strategies have {ALPHA / 2} by chance."
    )


def matrix_table(matrix: pd.DataFrame, labels: Mapping[str, str], notes: tuple[str, ...]) -> Table:
    """A pairwise penalty matrix, whose strategies are called as the labels say."""
    labels = {name: labels[name] for name in matrix.index}
    rows = [
        (
            labels[name],
            {labels[n]: number(matrix.loc[name, n], 2) for n in matrix.columns if n != name},
        )
        for name in matrix.index
    ]
    shown = _matrix("row beats column", list(labels.values()), rows)
    data = pd.DataFrame(
        [
            {"strategy": winner, "beats": loser, "share_of_budgets": matrix.loc[winner, loser]}
            for winner, loser in permutations(matrix.index, 2)
        ]
    )
    return Table("penalty", "Pairwise penalty matrix", data, shown, notes)


def rank_table(comparison: Comparison) -> Table:
    """Mean ranks with the Friedman and Nemenyi tests."""
    ranking = comparison.ranking
    caption = "Mean ranks by area under the budget curve (1 is best)"
    if ranking is None:
        note = f"No ranks: they take 3 strategies and {MIN_PAIRS} seeds that all of them have."
        return Table("ranks", caption, pd.DataFrame(), pd.DataFrame(), (note,))
    best = ranking.mean_ranks.index[0]
    data = pd.DataFrame(
        {
            "strategy": ranking.mean_ranks.index,
            "mean_rank": ranking.mean_ranks.to_numpy(),
            "nemenyi_p_against_best": ranking.nemenyi_p.loc[
                best, ranking.mean_ranks.index
            ].to_numpy(),
        }
    )
    rows = [
        {
            "strategy": comparison.labels[row["strategy"]],
            "mean rank": number(row["mean_rank"], 2),
            "p against the first (Nemenyi)": (
                "–" if row["strategy"] == best else p_text(row["nemenyi_p_against_best"])
            ),
        }
        for row in data.to_dict("records")
    ]
    return Table(
        "ranks",
        caption,
        data,
        _shown(rows),
        (
            f"Friedman test: χ² = {ranking.statistic:.2f}, p = {p_text(ranking.p)}, "
            f"{ranking.n_seeds} seeds as blocks. Critical difference of mean ranks "
            f"{ranking.critical_difference:.2f} (Demšar 2006). The blocks are seeds of one data "
            "set: it says nothing about other data sets, and below 10 blocks it is rough.",
        ),
    )


def reach_table(comparison: Comparison) -> Table:
    """What is needed for 90, 95 and 99% of the full-data Dice."""
    along = comparison.budget_label
    caption = f"{capitalised(along)} to reach a share of the full-data Dice, median over seeds"
    data = comparison.reach
    if data is None:
        note = "No full-data runs: add them with strategy=full."
        return Table("labels_needed", caption, pd.DataFrame(), pd.DataFrame(), (note,))
    largest = whole_if_it_is(comparison.curves["labelled"].max())
    rows = []
    for strategy, group in data.groupby("strategy"):
        row = {"strategy": comparison.labels[strategy]}
        for item in group.to_dict("records"):
            heading = f"{100 * item['share']:.0f}% (Dice {item['target']:.3f})"
            needed = "not reached" if math.isinf(item["median"]) else f"{item['median']:.1f}"
            row[heading] = f"{needed} [{item['n_reached']}/{item['n_runs']}]"
        rows.append(row)
    return Table(
        "labels_needed",
        caption,
        data,
        _shown(rows),
        (f"Linear between rounds; in brackets how many of the runs reached it within {largest} "
         f"{along.removeprefix('labelled ')}.",),
    )  # fmt: skip


def efficiency_table(comparison: Comparison) -> Table:
    """Foreground efficiency."""
    assert comparison.efficiency is not None
    data = comparison.efficiency
    rows = [
        {
            "strategy": comparison.labels[row["strategy"]],
            "foreground efficiency γ": number(row["foreground_efficiency"], 2),
        }
        for row in data.to_dict("records")
    ]
    return Table(
        "foreground_efficiency",
        "Foreground efficiency: Dice gained per annotated foreground",
        data,
        _shown(rows),
        ("Fit of Dice(x) = full - (full - start) exp(-γ (x - x_start)), x the annotated share of "
         "the training set's foreground voxels; larger is better (nnActive, TMLR 2025).",),
    )  # fmt: skip


def forecast_table(comparison: Comparison) -> Table:
    """The forecast of each strategy."""
    along = comparison.budget_label
    data = pd.DataFrame(
        [
            {
                "strategy": f.strategy,
                "target": f.target,
                "labelled": f.volumes,
                "low": f.low,
                "high": f.high,
                "model": f.fit.model.name if f.fit else None,
            }
            for f in comparison.forecasts
        ]
    )
    rows = [
        {
            "strategy": comparison.labels[f.strategy],
            along.removeprefix("labelled "): "–" if f.volumes is None else amount(f.volumes),
            "95% interval": (
                "–" if f.volumes is None
                else "reached" if math.isnan(f.low)
                else f"{bound(f.low)} to {'no limit' if math.isinf(f.high) else bound(f.high)}"
            ),
            "curve": f"{f.fit.model.name}: {f.fit.model.formula}" if f.fit else "–",
        }
        for f in comparison.forecasts
    ]  # fmt: skip
    declined = tuple(f.statement for f in comparison.forecasts if f.volumes is None)
    of_costs = (
        ()
        if comparison.run_set.budget == "labelled"
        else (
            "Curves are fitted to the rounds themselves, each at the mean of its costs over seeds.",
        )
    )
    return Table(
        "forecast",
        f"{capitalised(along)} expected for {comparison.measure.label} {comparison.target:.3f}",
        data,
        _shown(rows),
        (
            *declined,
            *of_costs,
            "The curve is the one that best predicts the last round from those before it. The "
            "interval resamples seeds (residuals with fewer than 3 seeds) and refits; it does not "
            "cover the choice of the curve. The training set has "
            f"{comparison.run_set.runs[0].n_volumes} volumes.",
        ),
    )


def back_test_table(comparison: Comparison) -> Table:
    """The forecast's error on the finished curves."""
    data = comparison.back_test
    rows = [
        {
            "rounds ahead": str(ahead),
            "curves": str(len(group)),
            "mean error of the forecast": number(group["error"].mean()),
            "mean error of no change": number(group["error_no_change"].mean()),
        }
        for ahead, group in data.groupby("rounds_ahead")
    ]
    return Table(
        "back_test",
        "Back-test of the forecast: error in Dice of the last round predicted from earlier ones",
        data,
        _shown(rows),
        ("No change: the Dice of the last known round is carried forward. A forecast that errs "
         "more than that is of no use.",),
    )  # fmt: skip


def calibration_table(comparison: Comparison) -> Table:
    """Expected calibration error by round."""
    data = calibration_errors(comparison.calibration)
    rows = [
        (
            str(number_),
            {
                comparison.labels[row["strategy"]]: f"{row['ece']:.4f}"
                for row in group.to_dict("records")
            },
        )
        for number_, group in data.groupby("round")
    ]
    columns = [comparison.labels[name] for name in sorted(set(data["strategy"]))]
    return Table(
        "calibration",
        "Expected calibration error by round (0 is perfect)",
        data,
        _matrix("round", columns, rows),
        ("Σ over bins n/N |accuracy - confidence|, all test voxels of all seeds together "
         "(Naeini et al., AAAI 2015).",),
    )  # fmt: skip


def clock_table(comparison: Comparison) -> Table:
    """Wall-clock seconds of a run."""
    data = seconds_table(comparison.timings)
    columns = [name for name in data if name != "strategy"]
    rows = [
        {"strategy": comparison.labels[row["strategy"]]}
        | {name.removesuffix("_seconds"): f"{row[name]:.1f}" for name in columns}
        | {"total": f"{sum(row[name] for name in columns):.1f}"}
        for row in data.to_dict("records")
    ]
    return Table("seconds", "Wall-clock seconds of a run, means over seeds", data, _shown(rows))


def write_tables(tables: Sequence[Table], folder: Path) -> None:
    """Write NAME.csv and NAME.tex of each table with rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        if table.data.empty:
            continue
        table.data.to_csv(folder / f"{table.name}.csv", index=False, encoding="utf-8")
        (folder / f"{table.name}.tex").write_text(latex(table), encoding="utf-8")


def latex(table: Table) -> str:
    """The table as a LaTeX table; needs the package booktabs, and LuaLaTeX or XeLaTeX."""
    escaped = table.shown.map(latex_text)
    escaped.columns = pd.Index([latex_text(name) for name in table.shown.columns])
    return str(
        escaped.to_latex(
            index=False,
            caption=latex_text(table.caption),
            label=f"tab:{table.name}",
            column_format="l" + "r" * (len(escaped.columns) - 1),
        )
    )


def latex_text(text: str) -> str:
    """A text as LaTeX prints it, character by character."""
    return printable(text).translate(_LATEX)


_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    # behind the end of a row, or of a rule, these would be its options
    | {c: f"{{{c}}}" for c in "[]*"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
)
