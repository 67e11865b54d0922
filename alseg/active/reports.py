"""What a run reports: files after each round, a summary on the terminal at the end."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.table import Table
from rich.text import Text

from alseg.active.experiment import Experiment
from alseg.active.figures import draw_learning_curve
from alseg.core.area_under_curve import area_under_budget_curve
from alseg.core.metric_names import TITLES
from alseg.run.folder import CURVE_FILE, METRICS_FILE, QUERIES_FILE
from alseg.run.measure import CROSS, TEST, VALIDATION, validation_of
from alseg.run.state import RunState
from alseg.system.console import console, file_size, fits, say
from alseg.system.distributed import rank
from alseg.system.files import write_atomically

NO_TEST_PART = {
    VALIDATION: "there is no test part: Dice is of the annotated cases that validate, which choose "
    "the weights and grow round by round; it guides this campaign, and is not a fair comparison of "
    "strategies",
    CROSS: "there is no test part: Dice is of all annotated cases, each judged by a network that "
    "was trained on the other folds only; it guides this campaign, and is not a fair comparison of "
    "strategies",
}
CLASS_WIDTH, ROUND_WIDTH = 30, 8  # of the columns in classes_table; a count has up to 5 digits


def print_summary(experiment: Experiment, state: RunState) -> None:
    """Print Dice by labelled count, the area under the budget curve, and what to do next."""
    classes = experiment.data.cache.task.foreground
    title = f"{experiment.tags['data']}, strategy {experiment.strategy.title}"
    table = rounds_table(state, f"{title}, seed {experiment.plan.seed}", classes)
    if fits(table):
        console().print(table)
    else:
        console().print(rounds_table(state, f"{title}, seed {experiment.plan.seed}"))
        console().print(classes_table(state, classes, experiment.plan.units))
    folder = experiment.folder
    measure = state.measure
    if measure.further_metrics(state.history[0]):
        console().print(further_table(state, classes, experiment.plan.units))
    area = area_under_budget_curve(*state.learning_curve(measure.column))
    for name in without_labels(state, classes):
        say(f"{name} is in no {measure.name} label: it has no Dice, and the mean leaves it out")
    for sentence in (*undefined_distances(state), NO_TEST_PART.get(measure)):
        if sentence:
            say(sentence)
    say(f"area under the budget curve, {measure.title}: {area:.4f}")
    sizes = [file_size(size_of(folder, pattern)) for pattern in ("*", "*.ckpt")]
    say(f"run folder:      {folder} ({sizes[0]}, of which checkpoints {sizes[1]})")
    say(f"learning curve:  {folder / CURVE_FILE}")
    for view, command in experiment.tracker.views().items():
        say(f"{view + ':':<16} {command}")
    say(f"compare runs:    python -m alseg.compare {shlex.quote(str(folder.parent))}")


def without_labels(state: RunState, classes: Sequence[str]) -> list[str]:
    """The classes that no label holds of the part that judges the run."""
    column = state.measure.of_class
    return [name for name in classes if math.isnan(state.history[-1][column(name)])]


def undefined_distances(state: RunState) -> list[str]:
    """What the last round's HD95 are of, where some of them do not exist."""
    count = state.history[-1].get(state.measure.undefined_hd95, 0)
    if not count:
        return []
    return [
        f"{count} HD95 of the last round do not exist, as only one of prediction and label has the "
        "class; each counts as the diagonal of its volume"
    ]


def rounds_table(state: RunState, title: str, classes: Sequence[str] = ()) -> Table:
    """A row a round: mean Dice of each part, Dice of these classes, seconds."""
    measure = state.measure
    columns = state.history[0]
    parts = [part for part in (validation_of(columns), TEST) if part.column in columns]
    meaning = f"mean Dice, {measure.title} by class" if classes else "mean Dice"
    table = Table(title=Text(f"{title}: {meaning}"))
    dice_headings = [*(part.short for part in parts), *classes]
    for heading in ("round", "labelled", "cost", *dice_headings, "train s", "score s"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for row, seconds in zip(state.history, state.timings, strict=True):
        dice = [row[p.column] for p in parts] + [row[measure.of_class(name)] for name in classes]
        table.add_row(
            str(row["round"]),
            str(row["labelled"]),
            f"{row['cost']:g}",
            *(f"{value:.3f}" for value in dice),
            f"{seconds['training_seconds']:.0f}",
            f"{seconds['scoring_seconds']:.1f}",
        )
    return table


def classes_table(state: RunState, classes: Sequence[str], units: str = "volumes") -> Table:
    """A row a class: its Dice by labelled count, of as many of the last rounds as fit."""
    measure = state.measure
    title = f"{measure.title} by class and labelled {units}"
    return table_by_count(state, title, "class", {n: measure.of_class(n) for n in classes})


def further_table(state: RunState, classes: Sequence[str], units: str = "volumes") -> Table:
    """The metrics beside Dice, mean and of each class, by labelled count, as ``classes_table``."""
    measure = state.measure
    columns = {}
    for metric in measure.further_metrics(state.history[0]):
        columns[TITLES[metric]] = measure.of_metric(metric)
        columns |= {
            f"{TITLES[metric]}, {name}": measure.of_metric(metric, name) for name in classes
        }
    title = f"{measure.name}, other metrics by labelled {units}"
    return table_by_count(state, title, "metric", columns)


def table_by_count(state: RunState, title: str, heading: str, columns: Mapping[str, str]) -> Table:
    """A row for each of some columns of metrics.csv, by labelled count.

    Args:
        state: of the run.
        title: of the table.
        heading: of its first column.
        columns: by what their rows are called.
    """
    table = Table(title=Text(title))
    table.add_column(heading, overflow="fold", max_width=CLASS_WIDTH)
    n_columns = max(1, (console().width - CLASS_WIDTH - 4) // ROUND_WIDTH)
    rows = state.history[-n_columns:]
    for row in rows:
        table.add_column(str(row["labelled"]), justify="right", no_wrap=True)
    for name, column in columns.items():
        table.add_row(Text(name), *(f"{row[column]:.3f}" for row in rows))
    return table


def size_of(folder: Path, pattern: str) -> int:
    """Bytes of the files below a folder whose names match."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


def metrics_table(state: RunState) -> pd.DataFrame:
    """metrics.csv: one row a round, Dice and seconds."""
    return pd.DataFrame(
        [row | seconds for row, seconds in zip(state.history, state.timings, strict=True)]
    )


def write_reports(experiment: Experiment, state: RunState) -> None:
    """Write metrics.csv, queries.csv and learning_curve.png from the state."""
    folder, name = experiment.folder, experiment.strategy.title
    write_atomically(folder / METRICS_FILE, metrics_table(state).to_csv(index=False))
    write_atomically(folder / QUERIES_FILE, pd.DataFrame(state.queries).to_csv(index=False))
    if rank() > 0:
        return
    draw_learning_curve(
        folder / CURVE_FILE,
        state.history,
        experiment.data.cache.task.foreground,
        f"{experiment.data.cache.task.name}: {name}, seed {experiment.plan.seed}",
        experiment.cost_unit,
        experiment.plan.units,
    )
