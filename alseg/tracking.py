"""Tracking of runs; the only place that uses MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from filelock import FileLock
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from alseg.errors import ConfigError

# Before MLflow is imported: it would call home otherwise.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

FLUSH_SECONDS = 10.0


class Tracker(Protocol):
    """Records one run: its settings, its metrics by labelled count, its files."""

    ui_command: str | None  # opens the tracking store's pages

    def open(
        self, run_id: str | None, settings: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        """Start a run, or continue the one with this id; returns its id, None if untracked."""

    def round_logger(self, round_number: int, n_labelled: int) -> Logger | bool:
        """A Lightning logger for a round's training curves; False for none."""

    def log_round(self, metrics: Mapping[str, float], n_labelled: int) -> None:
        """Record the metrics of a round at step ``n_labelled``."""

    def log_files(self, folder: Path) -> None:
        """Record the run folder's files."""

    def close(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""


class NoTracker:
    """Records nothing (``tracking=none``); the run folder holds everything all the same."""

    ui_command = None

    def open(
        self, run_id: str | None, settings: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        """There is no run."""
        return None

    def round_logger(self, round_number: int, n_labelled: int) -> Logger | bool:
        """There is no logger."""
        return False

    def log_round(self, metrics: Mapping[str, float], n_labelled: int) -> None:
        """Nothing is recorded."""

    def log_files(self, folder: Path) -> None:
        """Nothing is recorded."""

    def close(self, status: str) -> None:
        """There is nothing to end."""


class MLflowTracker:
    """One MLflow run for a (strategy, seed), with one nested run for each round.

    The parent's metrics have the number of labelled volumes as their step, so that the chart of
    several runs in the MLflow UI is the learning curve.

    Args:
        uri: the tracking store, such as ``sqlite:////home/me/runs/mlflow.db`` or
            ``http://host:5000``.
        experiment: the MLflow experiment's name.
        run_name: how the UI calls the run.
        skip: names of files and folders in the run folder that are not uploaded.

    Raises:
        ConfigError: if the store cannot be opened.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        skip: Sequence[str] = (),
    ) -> None:
        from mlflow import MlflowClient  # importing takes seconds: not for tracking=none

        self.run_name, self.skip = run_name, skip
        self.run_id: str | None = None
        self.tags: dict[str, str] = {}
        self.ui_command = f"mlflow ui --backend-store-uri {_without_secrets(uri)}"
        try:
            with _store_lock(uri) as folder:
                # The first call on a fresh sqlite file migrates its schema; processes that do so
                # at the same moment fail, hence the lock.
                self.client = MlflowClient(uri)
                found = self.client.get_experiment_by_name(experiment)
                location = (folder / "mlartifacts").absolute().as_uri() if folder else None
                self.experiment_id = (
                    found.experiment_id
                    if found
                    else self.client.create_experiment(experiment, artifact_location=location)
                )
        except Exception as error:  # each kind of store raises errors of its own
            raise ConfigError(f"tracking.uri {_without_secrets(uri)}: {error}") from error

    def open(
        self, run_id: str | None, settings: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        """Start a run, or continue the one with this id."""
        self.tags = dict(tags)
        if run_id is None:
            run = self.client.create_run(self.experiment_id, tags=self.tags, run_name=self.run_name)
            run_id = str(run.info.run_id)
            self._log_batch(run_id, params=settings)
        else:
            self.client.update_run(run_id, status="RUNNING")
        self.run_id = run_id
        return run_id

    def round_logger(self, round_number: int, n_labelled: int) -> Logger | bool:
        """A logger that writes to a nested run of its own."""
        tags = self.tags | {
            "mlflow.parentRunId": self._open_run(),
            "round": str(round_number),
            "labelled": str(n_labelled),
        }
        run = self.client.create_run(
            self.experiment_id, tags=tags, run_name=f"{self.run_name} round {round_number}"
        )
        return _RoundLogger(self, str(run.info.run_id))

    def log_round(self, metrics: Mapping[str, float], n_labelled: int) -> None:
        """Record the metrics of a round at step ``n_labelled``."""
        self._log_batch(self._open_run(), metrics=[(dict(metrics), n_labelled)])

    def log_files(self, folder: Path) -> None:
        """Upload the run folder's files, but for those in ``skip``."""
        for path in sorted(folder.iterdir()):
            if path.name in self.skip or path.name.startswith("."):
                continue
            if path.is_dir():
                self.client.log_artifacts(self._open_run(), str(path), artifact_path=path.name)
            else:
                self.client.log_artifact(self._open_run(), str(path))

    def close(self, status: str) -> None:
        """End the run."""
        self.client.set_terminated(self._open_run(), status=status)

    def _open_run(self) -> str:
        if self.run_id is None:
            raise RuntimeError("the tracker has not been opened")
        return self.run_id

    def _log_batch(
        self,
        run_id: str,
        metrics: list[tuple[dict[str, float], int]] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        rows = [
            Metric(name, float(value), now, step)
            for values, step in metrics or []
            for name, value in values.items()
        ]
        pairs = [Param(name, str(value)[:6000]) for name, value in (params or {}).items()]
        for start in range(0, max(len(rows), len(pairs)), 100):  # 100 params a batch at most
            part = slice(start, start + 100)
            self.client.log_batch(run_id, metrics=rows[part], params=pairs[part])


class _RoundLogger(Logger):
    """A Lightning logger that sends its metrics in batches: a call to the store costs 26-57 ms."""

    def __init__(self, tracker: MLflowTracker, run_id: str) -> None:
        super().__init__()
        self._tracker, self._run_id = tracker, run_id
        self._waiting: list[tuple[dict[str, float], int]] = []
        self._sent_at = time.monotonic()

    @property
    def name(self) -> str:
        """The experiment."""
        return self._tracker.run_name

    @property
    def version(self) -> str:
        """The nested run."""
        return self._run_id

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The settings stand in the parent run."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep metrics and send them now and then."""
        self._waiting.append((dict(metrics), step or 0))
        if time.monotonic() - self._sent_at > FLUSH_SECONDS:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Send what is waiting."""
        waiting, self._waiting = self._waiting, []
        self._tracker._log_batch(self._run_id, metrics=waiting)
        self._sent_at = time.monotonic()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is waiting; end the nested run."""
        self.save()
        self._tracker.client.set_terminated(
            self._run_id, status="FINISHED" if status == "success" else "FAILED"
        )


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
        return (self.folder / "config.yaml").is_file()


def fetch_runs(uri: str, experiment: str, folder: Path) -> list[StoredRun]:
    """Copy the run folders of an experiment from a tracking store, without checkpoints and maps.

    Args:
        uri: the tracking store.
        experiment: the experiment's name.
        folder: where the copies go, one folder a run.

    Raises:
        ConfigError: if the store cannot be read, or has no such experiment or no runs in it.
    """
    from mlflow import MlflowClient

    try:
        with _store_lock(uri):
            client = MlflowClient(uri)
            found = client.get_experiment_by_name(experiment)
        if found is None:
            raise ConfigError(f"{_without_secrets(uri)} has no experiment {experiment!r}")
        runs, token = [], None
        while token != "":
            page = client.search_runs([found.experiment_id], page_token=token)
            runs += [run for run in page if _is_strategy_run(run.data.tags)]
            token = page.token or ""
        stored = []
        for run in runs:
            target = folder / run.info.run_id
            target.mkdir(parents=True)
            _download(client, run.info.run_id, "", target)
            stored.append(StoredRun(str(run.info.run_name), str(run.info.status), target))
    except ConfigError:
        raise
    except Exception as error:  # each kind of store raises errors of its own
        raise ConfigError(f"cannot read {_without_secrets(uri)}: {error}") from error
    if not stored:
        raise ConfigError(f"experiment {experiment!r} in {_without_secrets(uri)} has no runs")
    return stored


def _is_strategy_run(tags: Mapping[str, str]) -> bool:
    """Whether a run is that of a (strategy, seed), not the nested one of a round."""
    return "strategy" in tags and "mlflow.parentRunId" not in tags


def _download(client: Any, run_id: str, path: str, target: Path) -> None:
    for entry in client.list_artifacts(run_id, path or None):
        if entry.is_dir:
            if Path(entry.path).name != "maps":
                _download(client, run_id, entry.path, target)
        elif not entry.path.endswith(".ckpt"):
            client.download_artifacts(run_id, entry.path, str(target))


def log_comparison(
    uri: str, experiment: str, folder: Path, metrics: Mapping[str, float], tags: Mapping[str, str]
) -> str:
    """Record a comparison as a run of its own, with its files.

    Returns:
        The run's id.

    Raises:
        ConfigError: if the store cannot be written to.
    """
    tracker = MLflowTracker(uri, experiment, "comparison")
    try:
        run_id = tracker.open(None, {}, {"kind": "comparison", **tags})
        assert run_id is not None
        tracker.log_round(metrics, 0)
        tracker.log_files(folder)
        tracker.close("FINISHED")
    except Exception as error:  # each kind of store raises errors of its own
        raise ConfigError(f"cannot write to {_without_secrets(uri)}: {error}") from error
    return run_id


@contextmanager
def _store_lock(uri: str) -> Iterator[Path | None]:
    """Lock a sqlite store and give its folder; other stores lock themselves."""
    parsed = urlparse(uri)
    if parsed.scheme != "sqlite":
        yield None
        return
    database = Path(parsed.path.removeprefix("/"))  # sqlite:///relative, sqlite:////absolute
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_name(database.name + ".lock")):
        yield database.parent


def _without_secrets(uri: str) -> str:
    parsed = urlparse(uri)
    return uri.replace(f"{parsed.username}:{parsed.password}@", "***@") if parsed.password else uri
