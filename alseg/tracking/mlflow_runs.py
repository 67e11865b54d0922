"""Reads run folders from an MLflow store, and records comparisons in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from alseg.core.errors import ConfigError
from alseg.run.folder import CONFIG_FILE, MAPS_FOLDER
from alseg.system.console import track
from alseg.system.secrets import without_secrets
from alseg.system.stores import sqlite_file
from alseg.tracking.mirror import files_to_send
from alseg.tracking.mlflow_access import search_runs, store_lock
from alseg.tracking.mlflow_store import PARENT_TAG, MLflowStore, accepted_name, origin_tags
from alseg.tracking.record import Point, now_ms, origin


@dataclass(frozen=True)
class StoredRun:
    """A run of a tracking store, its files copied to a folder.

    Attributes:
        name: how the store's pages call it.
        status: FINISHED, FAILED, KILLED, RUNNING or SCHEDULED.
        folder: where its files are.
    """

    name: str
    status: str
    folder: Path

    @property
    def has_files(self) -> bool:
        """Whether the run's folder was in the store; a run uploads it when it ends."""
        return (self.folder / CONFIG_FILE).is_file()


def fetch_runs(uri: str, experiment: str, folder: Path) -> list[StoredRun]:
    """Copy the run folders of an experiment from a tracking store, without checkpoints and maps.

    Args:
        uri: the tracking store.
        experiment: the experiment's name.
        folder: where the copies go, one folder a run.

    Raises:
        ConfigError: if the store cannot be read, or has no such experiment or no runs in it.
    """
    database = sqlite_file(uri)
    if database is not None and not database.is_file():  # which sqlite would make
        raise ConfigError(f"there is no tracking store {without_secrets(uri)}")
    try:
        with store_lock(uri):
            client = MlflowClient(uri)
            found = client.get_experiment_by_name(experiment)
        if found is None:
            raise ConfigError(f"{without_secrets(uri)} has no experiment {experiment!r}")
        all_runs = search_runs(client, found.experiment_id)
        runs = [run for run in all_runs if _is_strategy_run(run.data.tags)]
        stored = []
        for run in track(runs, "reading the store", "run", len(runs)):
            target = folder / run.info.run_id
            target.mkdir(parents=True)
            _download(client, run.info.run_id, "", target)
            stored.append(StoredRun(str(run.info.run_name), str(run.info.status), target))
    except ConfigError:
        raise
    except Exception as error:  # each kind of store raises errors of its own
        raise ConfigError(f"cannot read {without_secrets(uri)}: {error}") from error
    if not stored:
        raise ConfigError(f"experiment {experiment!r} in {without_secrets(uri)} has no runs")
    return stored


def _is_strategy_run(tags: Mapping[str, str]) -> bool:
    """Whether a run is that of a (strategy, seed), not the nested one of a round."""
    return "strategy" in tags and PARENT_TAG not in tags


def _download(client: Any, run_id: str, path: str, target: Path) -> None:
    for entry in client.list_artifacts(run_id, path or None):
        if entry.is_dir:
            if Path(entry.path).name != MAPS_FOLDER:
                _download(client, run_id, entry.path, target)
        elif not entry.path.endswith(".ckpt"):
            # MLflow puts a file right into the folder it is given, without the path before it.
            folder = (target / entry.path).parent
            if not folder.resolve().is_relative_to(target.resolve()):
                raise ConfigError(f"run {run_id} has an artifact outside its folder: {entry.path}")
            folder.mkdir(parents=True, exist_ok=True)
            client.download_artifacts(run_id, entry.path, str(folder))


def log_comparison(
    uri: str, experiment: str, folder: Path, metrics: Mapping[str, float], tags: Mapping[str, str]
) -> None:
    """Record a comparison as a run of its own, with its files.

    Raises:
        ConfigError: if the store cannot be written to.
    """
    store = MLflowStore(uri, experiment, "comparison")
    tags = {"kind": "comparison", **tags, **origin_tags(origin(folder), {})}
    points = [Point(accepted_name(name), value, now_ms(), 0) for name, value in metrics.items()]
    try:
        run_id = store.create("comparison", tags, now_ms())
        store.log(run_id, metrics=points)
        for path in files_to_send(folder, (), report=lambda link: None):
            store.upload(run_id, folder, path)
        store.client.set_terminated(run_id)
    except Exception as error:  # each kind of store raises errors of its own
        raise ConfigError(f"cannot write to {without_secrets(uri)}: {error}") from error
