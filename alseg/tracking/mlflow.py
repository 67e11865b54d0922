"""``tracking=mlflow``: the run folder, mirrored in MLflow while the run continues."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alseg.core.errors import AlsegError, ConfigError, check_text
from alseg.system.secrets import without_secrets
from alseg.system.stores import environment_store
from alseg.tracking.mirror import mirror, mirror_metrics
from alseg.tracking.mlflow_access import errors_named
from alseg.tracking.mlflow_store import MLflowStore
from alseg.tracking.record import FinishedRound

log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0


class MLflowTracker:
    """One MLflow run for a (strategy, seed), with one nested run for each round.

    The store has to be there when the run starts. One that goes away later does not end the run:
    what it misses is in the run folder, and is sent when the store is back or by
    ``python -m alseg.sync RUN_FOLDER``.

    Args:
        uri: the tracking store, such as ``sqlite:////home/me/runs/mlflow.db`` or
            ``http://host:5000``.
        experiment: the MLflow experiment's name.
        run_name: how the UI calls the run.
        skip: patterns (``*.ckpt``) of the names of files and folders that are not uploaded; the
            tag ``run_folder`` says where they are.

    Raises:
        ConfigError: if a setting is not text, or the store cannot be opened.
    """

    def __init__(self, uri: str, experiment: str, run_name: str, skip: Sequence[str] = ()) -> None:
        check_text("tracking.mlflow.uri", uri)
        check_text("tracking.mlflow.experiment", experiment)
        if isinstance(skip, str) or not isinstance(skip, Sequence):
            raise ConfigError(f"tracking.mlflow.skip is {skip!r}; it must be a list of patterns")
        self.store = MLflowStore(uri, experiment, run_name, skip)
        self.retry_seconds = RETRY_SECONDS
        self._experiment = experiment
        self._failed_at: float | None = None

    def open(self, folder: Path, settings: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Send the run to the store.

        Raises:
            ConfigError: if the store does not answer.
        """
        self.folder = folder
        uri = self.store.uri
        origin = " (from MLFLOW_TRACKING_URI)" if uri == environment_store() else ""
        log.info(
            f"recording in MLflow: experiment {self._experiment} in {without_secrets(uri)}{origin}"
        )
        with errors_named(uri):
            mirror_metrics(folder, self.store)

    def round_logger(self, round_number: int, n_labelled: int, folder: Path) -> None:
        """None: the training curves are sent from the run folder."""

    def curves_saved(self) -> None:
        """Send what is new in the training curves."""
        self._send(mirror_metrics)

    def log_rounds(self, rounds: Sequence[FinishedRound]) -> None:
        """Send what is new in the run folder."""
        self._send(mirror)

    def close(self, status: str, reason: str = "") -> None:
        """Send what the store misses, for the last time in this process."""
        self._failed_at = None
        self._send(mirror)
        if self._failed_at is not None:
            log.warning(
                "not all could be sent to the tracking store; send the rest with: "
                f"python -m alseg.sync {shlex.quote(str(self.folder))}"
            )

    def views(self) -> dict[str, str]:
        """What opens the charts."""
        store = shlex.quote(without_secrets(self.store.uri))
        name = shlex.quote(self._experiment)
        return {"MLflow charts": f"python -m alseg.ui {store} --experiment {name}"}

    def _send(self, send: Callable[[Path, MLflowStore], object]) -> None:
        """Send from the run folder, unless the store was away a moment ago."""
        now, failed_at = time.monotonic(), self._failed_at
        if failed_at is not None and now - failed_at < self.retry_seconds:
            return
        try:
            send(self.folder, self.store)
        except AlsegError:  # of the run folder
            raise
        except Exception as error:  # each kind of store raises errors of its own
            self.store.forget()
            self._failed_at = time.monotonic()
            if failed_at is None:
                log.warning(
                    "the tracking store does not answer; what it misses is sent from "
                    f"{self.folder} when it is back: {without_secrets(str(error))}"
                )
        else:
            self._failed_at = None
            if failed_at is not None:
                log.info("the tracking store is back, and misses nothing")


def send_missing(folder: Path, settings: Mapping[str, Any]) -> None:
    """Send what a store misses of a run folder that no other process works on.

    Args:
        folder: the run folder.
        settings: of ``tracking.mlflow``.

    Raises:
        ConfigError: if the store does not answer.
        DataError: if a file of the run folder is damaged.
    """
    tracker = MLflowTracker(**{name: v for name, v in settings.items() if name != "_target_"})
    with errors_named(tracker.store.uri):
        mirror(folder, tracker.store)
