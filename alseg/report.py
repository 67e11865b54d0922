"""What a run tells: files after each round, a summary on the terminal at the end."""

from __future__ import annotations

import pandas as pd
from rich.console import Console
from rich.table import Table

from alseg.distributed import rank
from alseg.evaluation import area_under_budget_curve
from alseg.experiment import Experiment
from alseg.files import write_atomically
from alseg.pictures import draw_learning_curve
from alseg.state import RunState


def print_summary(experiment: Experiment, state: RunState) -> None:
    """Print Dice by labelled count, the area under the budget curve, and where the files lie."""
    classes = experiment.data.cache.task.foreground
    title = f"{experiment.tags['data']}, strategy {experiment.strategy.title}"
    table = Table(title=f"{title}, seed {experiment.plan.seed}: mean Dice, test Dice by class")
    for heading in ("round", "labelled", "cost", "val", "test", *classes, "train s", "score s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row, seconds in zip(state.history, state.timings, strict=True):
        dice = [row["val_dice"], row["test_dice"], *(row[f"test_dice_{name}"] for name in classes)]
        table.add_row(
            str(row["round"]),
            str(row["labelled"]),
            f"{row['cost']:g}",
            *(f"{value:.3f}" for value in dice),
            f"{seconds['training_seconds']:.0f}",
            f"{seconds['scoring_seconds']:.1f}",
        )
    area = area_under_budget_curve(*state.learning_curve("test_dice"))
    console = Console()
    console.print(table)
    # soft_wrap: paths and commands stay in one piece, to be copied
    console.print(f"area under the budget curve (test Dice): {area:.4f}", soft_wrap=True)
    console.print(f"learning curve:  {experiment.folder / 'learning_curve.png'}", soft_wrap=True)
    if experiment.tracker.ui_command:
        console.print(f"MLflow UI:       {experiment.tracker.ui_command}", soft_wrap=True)


def metrics_table(state: RunState) -> pd.DataFrame:
    """metrics.csv: one row a round, Dice and seconds."""
    return pd.DataFrame(
        [row | seconds for row, seconds in zip(state.history, state.timings, strict=True)]
    )


def write_reports(experiment: Experiment, state: RunState) -> None:
    """Write metrics.csv, queries.csv and learning_curve.png from the state."""
    folder, name = experiment.folder, experiment.strategy.title
    write_atomically(folder / "metrics.csv", metrics_table(state).to_csv(index=False))
    write_atomically(folder / "queries.csv", pd.DataFrame(state.queries).to_csv(index=False))
    if rank() > 0:
        return
    draw_learning_curve(
        folder / "learning_curve.png",
        state.history,
        experiment.data.cache.task.foreground,
        f"{experiment.data.cache.task.name}: {name}, seed {experiment.plan.seed}",
    )
