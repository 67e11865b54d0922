"""The page of several data sets: one comparison each in folders beside it, and one over all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from alseg.comparison import figures
from alseg.comparison.benchmark import Benchmark, sentences_together
from alseg.comparison.conclusions import p_text, sentences
from alseg.comparison.figures import NARROW, WIDE
from alseg.comparison.output_folder import clear
from alseg.comparison.page import (
    PAGE_FILE,
    Drawing,
    Link,
    Origin,
    Section,
    html,
    name_of_file,
    save_drawings,
    shown_table,
    write_comparison,
)
from alseg.comparison.statistics import MIN_PAIRS
from alseg.comparison.tables import (
    Table,
    interval,
    matrix_table,
    number,
    source_of_penalty,
    write_tables,
)
from alseg.system.files import write_atomically

MOST = 0.99  # share of the full-data Dice


def write_benchmark(benchmark: Benchmark, folder: Path, origins: Mapping[str, Origin]) -> Path:
    """Write index.html over all data sets, and a comparison of each in a folder of its name.

    Args:
        benchmark: the comparisons and what they say together.
        folder: where the files go.
        origins: how and from what the page of each data set was made, all by one command.

    Returns:
        The page's path.
    """
    folders = folders_of(benchmark.comparisons)
    for data, comparison in benchmark.comparisons.items():
        clear(folder / folders[data], PAGE_FILE)
        write_comparison(comparison, folder / folders[data], origins[data])
    tables = [overview_table(benchmark), rank_table(benchmark), differences_table(benchmark)]
    tables += [penalty_table(benchmark), reach_table(benchmark)]
    write_tables(tables, folder / "tables")
    shown = save_drawings(drawings(benchmark, WIDE), drawings(benchmark, NARROW), folder)
    origin = next(iter(origins.values()))
    found = [
        Section(
            "sets",
            "Data sets",
            paragraphs=[f"{d}: {sentences(c)[0]}" for d, c in benchmark.comparisons.items()],
            links=[
                Link(f"{folders[data]}/{PAGE_FILE}", f"Comparison of strategies on {data}")
                for data in benchmark.comparisons
            ],
        ),
        Section(
            "together",
            "Over all data sets",
            drawings=list(shown.values()),
            tables=[shown_table(table, folded=False) for table in tables],
        ),
        Section("runs", "Runs", [origin.sentence], command=origin.command),
    ]
    n_runs = sum(len(c.run_set.runs) for c in benchmark.comparisons.values())
    page = folder / PAGE_FILE
    text = html(
        f"Comparison of strategies on {len(benchmark.comparisons)} data sets",
        f"{n_runs} runs, {len(benchmark.strategies)} strategies that all data sets have, "
        f"{benchmark.n_settings} settings (seeds of data sets) that have all of them",
        sentences_together(benchmark),
        found,
    )
    write_atomically(page, text)
    return page


def folders_of(names: Iterable[str]) -> dict[str, str]:
    """What the folder of each data set's page is called, no two alike."""
    found: dict[str, str] = {}
    for name in names:
        folder, number = name_of_file(name), 1
        while folder in (*found.values(), "figures", "tables"):
            number += 1
            folder = f"{name_of_file(name)}_{number}"
        found[name] = folder
    return found


def drawings(benchmark: Benchmark, width: float) -> list[Drawing]:
    """The figures over all data sets, ``width`` inches wide."""
    found = []
    if benchmark.matrix is not None:
        found.append(
            Drawing(
                "penalty_matrix",
                "Pairwise penalty matrix over data sets: the share of the labelled counts at which "
                "the row's strategy beats the column's, which has the number of its row.",
                "Heat map of the pairwise penalty matrix; its table has the numbers.",
                figures.penalty_heat_map(benchmark.matrix, benchmark.labels, width),
            )
        )
    if benchmark.ranking is not None:
        found.append(
            Drawing(
                "critical_difference",
                "Critical-difference diagram: mean ranks over settings, 1 is best; an orange bar "
                "joins strategies that Nemenyi's test cannot distinguish.",
                "Critical-difference diagram; the table of mean ranks has the numbers.",
                figures.critical_difference(benchmark.ranking, benchmark.labels, width),
            )
        )
    return found


def overview_table(benchmark: Benchmark) -> Table:
    """Each strategy in a row: its mean rank, and how often it beats the reference."""
    reference, n_sets = benchmark.labels[benchmark.reference], len(benchmark.comparisons)
    rows = [
        {
            "strategy": benchmark.labels[row["strategy"]],
            "mean rank": number(row["mean_rank"], 2),
            f"settings above {reference}": (
                f"{row['n_above']} of {row['n_settings']} ({row['share_above']:.0%})"
            ),
            "mean difference": f"{row['difference']:+.3f}",
            "data sets surely above": f"{row['surely_above']} of {n_sets}",
            "surely below": f"{row['surely_below']} of {n_sets}",
        }
        for row in benchmark.overview.to_dict("records")
        if row["strategy"] != benchmark.reference
    ]
    at = benchmark.ranks.loc[benchmark.reference, "all"]
    return Table(
        "overview",
        f"Strategies over {n_sets} data sets, by area under the budget curve",
        benchmark.overview,
        pd.DataFrame(rows, dtype=str),
        (
            f"{reference} has mean rank {number(float(at), 2)}. A setting is a seed of a data set. "
            "Mean difference: of the areas, over the seeds of a data set, then over data sets. "
            "Surely: the 95% interval of the mean over seeds (Student's t, not corrected for the "
            f"number of strategies) excludes 0, which takes {MIN_PAIRS} seeds.",
        ),
    )


def rank_table(benchmark: Benchmark) -> Table:
    """Mean ranks in each data set and over all."""
    data = benchmark.ranks.rename_axis("strategy").reset_index()
    rows = [
        {
            "strategy": benchmark.labels[str(strategy)],
            **{("all settings" if c == "all" else str(c)): number(row[c], 2) for c in row.index},
        }
        for strategy, row in benchmark.ranks.iterrows()
    ]
    ranking = benchmark.ranking
    test = (
        f"No test: it takes 3 strategies and {MIN_PAIRS} settings that all of them have."
        if ranking is None
        else f"Friedman test: χ² = {ranking.statistic:.2f}, p = {p_text(ranking.p)}, "
        f"{ranking.n_seeds} settings as blocks; critical difference of mean ranks "
        f"{ranking.critical_difference:.2f} (Demšar 2006). Seeds of one data set resemble each "
        "other, so this is about these data sets more than about others."
    )
    shown = pd.DataFrame(rows, dtype=str)
    return Table("ranks", "Mean ranks by area (1 is best)", data, shown, (test,))


def differences_table(benchmark: Benchmark) -> Table:
    """The difference of each strategy from the reference on each data set."""
    differences = {data: c.differences for data, c in benchmark.comparisons.items()}
    data = pd.concat([table.assign(data=name) for name, table in differences.items()])
    data = data[data["strategy"].isin(benchmark.strategies)]
    rows = [
        {
            "strategy": benchmark.labels[strategy],
            **{name: _cell(table, strategy) for name, table in differences.items()},
        }
        for strategy in benchmark.ranks.index
        if strategy != benchmark.reference
    ]
    return Table(
        "differences",
        f"Difference of the area from {benchmark.labels[benchmark.reference]}, paired by seed, "
        "with its 95% interval",
        data,
        pd.DataFrame(rows, dtype=str),
    )


def reach_table(benchmark: Benchmark) -> Table:
    """The labels that each strategy needs for 99% of the full-data Dice of each data set."""
    caption = f"Labels to reach {MOST:.0%} of the full-data Dice, median over seeds"
    reached = {d: c.reach for d, c in benchmark.comparisons.items() if c.reach is not None}
    if not reached:
        note = "No full-data runs: add them with strategy=full."
        return Table("labels_needed", caption, pd.DataFrame(), pd.DataFrame(), (note,))
    data = pd.concat([table.assign(data=name) for name, table in reached.items()])
    data = data[(data["share"] == MOST) & data["strategy"].isin(benchmark.strategies)]
    rows = []
    for strategy in benchmark.ranks.index:
        row = {"strategy": benchmark.labels[strategy]}
        for item in data[data["strategy"] == strategy].to_dict("records"):
            needed = "not reached" if math.isinf(item["median"]) else f"{item['median']:.1f}"
            row[item["data"]] = f"{needed} [{item['n_reached']}/{item['n_runs']}]"
        rows.append(row)
    note = "Linear between rounds; in brackets how many of the runs reached it in their rounds."
    return Table("labels_needed", caption, data, pd.DataFrame(rows, dtype=str), (note,))


def _cell(differences: pd.DataFrame, strategy: str) -> str:
    row = differences[differences["strategy"] == strategy].iloc[0]
    span = interval(row["low"], row["high"])
    return f"{row['difference']:+.3f}" + ("" if span == "–" else f" ({span})")


def penalty_table(benchmark: Benchmark) -> Table:
    """The pairwise penalty matrix over data sets."""
    if benchmark.matrix is None:
        note = "No matrix: it takes two strategies, two budgets and "
        note += f"{MIN_PAIRS} seeds that all strategies have in common, in each data set."
        empty = pd.DataFrame()
        return Table("penalty", "Pairwise penalty matrix", empty, empty, (note,))
    source = source_of_penalty(", mean over data sets")
    return matrix_table(benchmark.matrix, benchmark.labels, (source,))
