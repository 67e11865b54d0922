"""Tracked runs without training: what the round loop does with trackers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from alseg.run.folder import round_folder
from alseg.tracking.mlflow import MLflowTracker
from alseg.tracking.tracker import Trackers


class TrackedRun:
    """A run in a folder, recorded in an MLflow store."""

    def __init__(self, folder: Path, uri: str, experiment: str = "mirror", **more: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.mlflow = MLflowTracker(uri, experiment, "run")
        self.trackers = Trackers({"mlflow": self.mlflow, **more})

    def open(
        self,
        settings: Mapping[str, object] = {"training.optimizer._target_": "x", "pool.rounds": 2},
        tags: Mapping[str, str] = {"strategy": "random", "seed": "1"},
    ) -> None:
        self.trackers.open(self.folder, settings, tags)

    def train(self, number: int, labelled: int, curve: Mapping[int, Mapping[str, float]]) -> None:
        """Log a round's training curves: metrics by step."""
        own = round_folder(self.folder, number)
        own.mkdir(parents=True, exist_ok=True)
        loggers = self.trackers.round_loggers(number, labelled, own)
        for step, metrics in curve.items():
            for logger in loggers:
                logger.log_metrics(dict(metrics), step)
        for logger in loggers:
            logger.finalize("success")

    def write_metrics(self, number: int, labelled: int, test_dice: float) -> None:
        """Add the row of a finished round to metrics.csv."""
        path = self.folder / "metrics.csv"
        rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
        rows = [row for row in rows if row["round"] < number]
        row = {"round": number, "labelled": labelled, "test_dice": test_dice}
        row |= {"test_dice_left lung": float("nan"), "training_seconds": 1.5 * number}
        pd.DataFrame([*rows, row]).to_csv(path, index=False)

    def finish(self, number: int, labelled: int, test_dice: float) -> None:
        """End a round."""
        self.write_metrics(number, labelled, test_dice)
        self.trackers.log_rounds()


def stored_runs(store: str, experiment: str = "mirror") -> tuple[Run, dict[str, Run]]:
    """The only run of an experiment, and its nested ones by round."""
    client = MlflowClient(store)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    nested = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in runs if run not in nested]
    by_round = {run.data.tags["round"]: run for run in nested}
    assert len(by_round) == len(nested)
    return parent, by_round


def history(store: str, run: Run, metric: str) -> list[tuple[int, float]]:
    """Steps and values of a metric, in the order of their times."""
    points = MlflowClient(store).get_metric_history(run.info.run_id, metric)
    return [(point.step, point.value) for point in sorted(points, key=lambda p: p.timestamp)]
