"""``tracking=mlflow``; the only place that uses MLflow."""

from __future__ import annotations

import errno
import getpass
import logging
import os
import posixpath
import re
import secrets
import shlex
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH as DEFAULT_ARTIFACTS
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from alseg.core.errors import NO_ROOM, AlsegError, ConfigError, check_text
from alseg.run.folder import CONFIG_FILE, JOURNAL_FILE, MAPS_FOLDER
from alseg.run.provenance import train_command
from alseg.system.console import track
from alseg.system.files import TEMPORARY, is_within, locked, name_file_in_errors
from alseg.system.secrets import without_secrets
from alseg.system.stores import environment_store, sqlite_file
from alseg.tracking.loggers import FLUSH_SECONDS, without_repeats
from alseg.tracking.outbox import Operation, Outbox, RefusedError

log = logging.getLogger(__name__)

T = TypeVar("T")

# MLflow's own retries would hold up training for minutes; the outbox tries again.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one bar a file
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # with the password in it

# It prints tracebacks of what it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

LOCKED_SECONDS = 60.0  # how long another process may keep a sqlite store locked
BATCH_PARAMS, BATCH_METRICS = 100, 1000  # the most that MLflow takes in one call
MAX_NAME = 250  # characters of a metric's name
FAILURE_TAG = "failure"
RECORDED = "dice/val"  # a round that has it has been recorded


# Otherwise the UI opens an experiment on an empty page of traces.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


class MLflowTracker:
    """One MLflow run for a (strategy, seed), with one nested run for each round.

    The parent's metrics have the number of labelled volumes as their step, so that the chart of
    several runs in the MLflow UI is the learning curve.

    The store has to be there when the run starts. One that goes away later does not end the run:
    what it misses waits in the run folder, and is sent when the store is back or by
    ``python -m alseg.sync RUN_FOLDER``.

    Args:
        uri: the tracking store, such as ``sqlite:////home/me/runs/mlflow.db`` or
            ``http://host:5000``.
        experiment: the MLflow experiment's name.
        run_name: how the UI calls the run.
        skip: patterns (``*.ckpt``) of the names of files and folders that are not uploaded; the
            tag ``run_folder`` says where they are.

    Raises:
        ConfigError: if a setting is no text, or the store cannot be opened.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        skip: Sequence[str] = (),
    ) -> None:
        check_text("tracking.mlflow.uri", uri)
        check_text("tracking.mlflow.experiment", experiment)
        if isinstance(skip, str) or not isinstance(skip, Sequence):
            raise ConfigError(f"tracking.mlflow.skip is {skip!r}; it must be a list of patterns")
        self.run_name, self.skip = run_name, skip
        self.run_id: str | None = None
        self._left: dict[str, str] = {}  # round -> nested run of one that is not recorded yet
        self._recorded: set[int] = set()  # the steps of the rounds that the store has
        self._renamed: set[str] = set()  # metrics whose names MLflow refuses, as the user was told
        self.tags: dict[str, str] = {}
        with _needed(uri), _store_lock(uri) as folder:
            self.client = MlflowClient(uri)
            location = (folder / "mlartifacts").absolute().as_uri() if folder else None
            self.experiment_id = _patiently(
                lambda: _experiment_id(self.client, experiment, location)
            )
        self._uri, self._experiment = uri, experiment
        self._round: _RoundLogger | None = None

    def open(
        self,
        folder: Path,
        run_id: str | None,
        settings: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> str | None:
        """Start a run, or continue the one with this id.

        Raises:
            ConfigError: if the store does not answer, or does not know the run.
            DataError: if the journal of what waits is damaged.
        """
        self.folder, self.tags = folder, dict(tags)
        origin = " (from MLFLOW_TRACKING_URI)" if self._uri == environment_store() else ""
        log.info(
            f"recording in MLflow: experiment {self._experiment} in {without_secrets(self._uri)}"
            f"{origin}"
        )
        self.outbox = outbox = outbox_for(self.client, folder)
        with _needed(self._uri):
            if not outbox.flush():
                raise outbox.error or RuntimeError(f"{outbox.journal} cannot be sent")
            if run_id is None:
                tags = self.tags | _origin(folder)
                if "strategy" in tags:
                    tags["mlflow.note.content"] = _description(tags)
                run_id = _perform(
                    self.client,
                    {"do": "create", "name": self.run_name, "tags": tags, "time": _now()}
                    | {"experiment": self.experiment_id},
                )
            else:
                _patiently(partial(self._reopen, run_id))
        assert run_id is not None
        self.run_id = run_id
        params = [
            (name, str(value)[:6000])
            for name, value in settings.items()
            if name.rpartition(".")[2] not in ("_target_", "_partial_")  # code, not settings
        ]
        for start in range(0, len(params), BATCH_PARAMS):
            batch = dict(params[start : start + BATCH_PARAMS])
            outbox.send(do="log", run=run_id, params=batch, metrics=[])
        return run_id

    def _reopen(self, run_id: str) -> None:
        """Continue a run, and the nested one of the round in which an earlier process has ended."""
        run = self.client.get_run(run_id)
        if FAILURE_TAG in run.data.tags:
            self.client.delete_tag(run_id, FAILURE_TAG)
        recorded = self.client.get_metric_history(run_id, RECORDED)
        self._recorded = {point.step for point in recorded}
        nested = f"tags.`mlflow.parentRunId` = '{run_id}'"
        for child in self.client.search_runs([run.info.experiment_id], nested):
            if child.info.status == "RUNNING":
                self.client.set_terminated(child.info.run_id, status="KILLED")
            if int(child.data.tags["labelled"]) not in self._recorded:
                self._left[child.data.tags["round"]] = child.info.run_id
        self.client.update_run(run_id, status="RUNNING")  # last: it is not left so by a failure

    def round_logger(self, round_number: int, n_labelled: int, folder: Path) -> Logger:
        """A logger that writes to a nested run of its own; a resumed round goes on with its."""
        name = f"{self.run_name} round {round_number}"
        last_steps: dict[str, int] = {}
        if key := self._left.pop(str(round_number), None):
            with _needed(self._uri):
                for metric in self.client.get_run(key).data.metrics:
                    points = self.client.get_metric_history(key, metric)
                    last_steps[metric] = max(point.step for point in points)
        else:
            # without the strategy: the UI would group nested runs with their parents
            tags = {
                "mlflow.parentRunId": self._open_run(),
                "round": str(round_number),
                "labelled": str(n_labelled),
            }
            key = self.outbox.create_run(
                name=name, tags=tags, time=_now(), experiment=self.experiment_id
            )
        self._round = _RoundLogger(self.outbox, name, key, last_steps)
        return self._round

    def log_round(self, metrics: Mapping[str, float], n_labelled: int) -> None:
        """Record the metrics of a round at step ``n_labelled``, unless the store has them.

        That ends its nested run.
        """
        self._end_round("FINISHED")
        if n_labelled in self._recorded:
            return
        for name in metrics:
            if accepted_name(name) != name and name not in self._renamed:
                self._renamed.add(name)
                log.warning(
                    f"MLflow refuses the name {name!r}: it is {accepted_name(name)!r} there"
                )
        self._recorded.add(n_labelled)
        _send_metrics(self.outbox, self._open_run(), _rows(metrics, n_labelled))

    def close(self, status: str, reason: str = "") -> None:
        """End the run and upload its folder, but for what ``skip`` names."""
        run_id = self._open_run()
        self._end_round(status)
        if reason:
            self.outbox.send(
                do="tag", run=run_id, name=FAILURE_TAG, value=without_secrets(reason)[:5000]
            )
        self.outbox.send(do="end", run=run_id, status=status, time=_now())
        # Last: files that cannot be uploaded hold up nothing else.
        skipped = (*self.skip, JOURNAL_FILE, ".*")
        for file in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            path = file.relative_to(self.folder)
            if any(fnmatch(part, pattern) for part in path.parts for pattern in skipped):
                continue
            if is_within(file, self.folder):
                self.outbox.send(do="upload", run=run_id, path=path.as_posix())
            else:
                log.warning(f"{file} is a link out of the run folder, and not sent to MLflow")
        if not self.outbox.flush():
            log.warning(
                f"{self.outbox.n_waiting} operations could not be sent to the tracking store; send "
                f"them with: python -m alseg.sync {shlex.quote(str(self.folder))}"
            )

    def views(self) -> dict[str, str]:
        """What opens the charts."""
        store, name = shlex.quote(without_secrets(self._uri)), shlex.quote(self._experiment)
        return {"MLflow charts": f"python -m alseg.ui {store} --experiment {name}"}

    def _end_round(self, status: str) -> None:
        if self._round is not None:
            self._round.end(status)
            self._round = None

    def _open_run(self) -> str:
        if self.run_id is None:
            raise RuntimeError("the tracker has not been opened")
        return self.run_id


class _RoundLogger(Logger):
    """A Lightning logger that sends its metrics in batches: a call to the store costs 26-57 ms."""

    def __init__(self, outbox: Outbox, name: str, run: str, last_steps: dict[str, int]) -> None:
        super().__init__()
        self._outbox, self._name, self._run = outbox, name, run
        self._last_steps = last_steps
        self._waiting: list[MetricRow] = []
        self._sent_at = time.monotonic()

    @property
    def name(self) -> str:
        """How the UI calls the nested run."""
        return self._name

    @property
    def version(self) -> str:
        """The nested run's key."""
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The settings stand in the parent run."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep metrics and send them now and then."""
        accepted = {accepted_name(name): value for name, value in metrics.items()}
        self._waiting += _rows(without_repeats(accepted, step or 0, self._last_steps), step or 0)
        if time.monotonic() - self._sent_at > FLUSH_SECONDS:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Send what is waiting."""
        waiting, self._waiting = self._waiting, []
        _send_metrics(self._outbox, self._run, waiting)
        self._sent_at = time.monotonic()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is waiting: training, testing and scoring each say that they are done."""
        self.save()

    def end(self, status: str) -> None:
        """End the nested run."""
        self.save()
        self._outbox.send(do="end", run=self._run, status=status, time=_now())


def sync(uri: str, folder: Path) -> Outbox:
    """Send what waits in a run folder.

    Returns:
        The outbox, with what could not be sent, and its error.

    Raises:
        ConfigError: if the store cannot be opened.
        DataError: if the journal is damaged.
    """
    with _needed(uri), _store_lock(uri):
        outbox = outbox_for(MlflowClient(uri), folder)
    outbox.flush()
    return outbox


def outbox_for(client: Any, folder: Path) -> Outbox:
    """The outbox of a run folder, with what waits in its journal.

    Args:
        client: an ``mlflow.MlflowClient``.
        folder: the run folder.
    """

    def perform(operation: Operation) -> str | None:
        try:
            return _perform(client, operation, folder)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE" or operation["do"] == "create":
                raise
            if (items := _one_by_one(operation)) is None:
                raise RefusedError(str(error)) from error
            refusals = []
            for item in items:  # MLflow refuses a whole batch for one value in it
                try:
                    perform(item)
                except RefusedError as refusal:
                    refusals.append(str(refusal))
            if refusals:
                raise RefusedError("; ".join(refusals)) from error
            return None

    return Outbox(perform, folder / JOURNAL_FILE)


def _one_by_one(operation: Operation) -> list[Operation] | None:
    """The values of a batch as operations of their own; None if it is a single one."""
    if operation["do"] != "log" or len(operation["metrics"]) + len(operation["params"]) < 2:
        return None
    metrics = [operation | {"metrics": [row], "params": {}} for row in operation["metrics"]]
    pairs = operation["params"].items()
    return metrics + [operation | {"metrics": [], "params": {k: v}} for k, v in pairs]


def _perform(client: Any, operation: Operation, folder: Path | None = None) -> str | None:
    """Do one operation of an outbox; returns the id of the run if it creates one."""

    return _patiently(lambda: _perform_once(client, operation, folder))


def _perform_once(client: Any, operation: Operation, folder: Path | None) -> str | None:
    run = operation.get("run")
    match operation["do"]:
        case "create":
            created = client.create_run(
                operation["experiment"],
                start_time=operation["time"],
                tags=operation["tags"],
                run_name=operation["name"],
            )
            return str(created.info.run_id)
        case "log":
            metrics = [Metric(*row) for row in operation["metrics"]]
            params = [Param(*pair) for pair in operation["params"].items()]
            client.log_batch(run, metrics=metrics, params=params)
        case "tag":
            client.set_tag(run, operation["name"], operation["value"])
        case "end":
            client.set_terminated(run, status=operation["status"], end_time=operation["time"])
        case "upload":
            assert folder is not None
            path = Path(operation["path"])
            if (folder / path).is_file():  # it may have been deleted while it waited
                parent = path.parent.as_posix() if path.parent.name else None
                client.log_artifact(run, str(folder / path), parent)
        case unknown:
            raise ValueError(f"unknown operation {unknown}")
    return None


def _patiently(call: Callable[[], T]) -> T:
    """Call the store again for a while, if another process has its sqlite file locked.

    sqlite waits by itself, but not where a transaction that has read comes to write: there it asks
    for the whole transaction again.
    """
    deadline = time.monotonic() + LOCKED_SECONDS
    while True:
        try:
            return call()
        except MlflowException as error:
            if "database is locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(LOCKED_SECONDS / 300)


def _experiment_id(client: Any, name: str, location: str | None) -> str:
    """The id of an experiment, which is made if it is not there.

    Raises:
        ConfigError: if it was deleted, in the MLflow UI or otherwise.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, location, EXPERIMENT_TAGS))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another job's
    if found.lifecycle_stage == "deleted":
        raise ConfigError(
            f"the MLflow experiment {name!r} was deleted; take another experiment_name=..., or "
            f"restore it: MLFLOW_TRACKING_URI={shlex.quote(without_secrets(client.tracking_uri))} "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)


def _origin(folder: Path) -> dict[str, str]:
    """Tags that say what made a run, who, and where its folder is."""
    return {
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": getpass.getuser(),
        "run_folder": str(folder.absolute()),
    }


def _description(tags: Mapping[str, str]) -> str:
    """A run in a paragraph, which the UI shows above its metrics."""
    data = f" on {tags['data']}" if "data" in tags else ""
    return f"Strategy {tags['strategy']}{data}, seed {tags['seed']}, by `{train_command()}`"


MetricRow = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step


def _rows(metrics: Mapping[str, float], step: int) -> list[MetricRow]:
    return [(accepted_name(name), float(value), _now(), step) for name, value in metrics.items()]


def accepted_name(name: str) -> str:
    """A name that MLflow accepts for a metric: the name itself, if it is one.

    Else what it refuses is replaced and a checksum of the name is added, so that different names
    stay different, and a name is the same in every process.
    """
    acceptable = re.sub(r"[^/\w. -]", "_", name)
    if posixpath.normpath(acceptable) != acceptable or acceptable.startswith(("/", "..")):
        acceptable = "_" + acceptable.replace("/", "_")
    if acceptable == name and len(name) <= MAX_NAME and name != ".":
        return name
    checksum = f"{zlib.crc32(name.encode()):08x}"
    return f"{acceptable[: MAX_NAME - len(checksum) - 1]}-{checksum}"


def _send_metrics(outbox: Outbox, run: str, rows: list[MetricRow]) -> None:
    for start in range(0, len(rows), BATCH_METRICS):
        batch = rows[start : start + BATCH_METRICS]
        outbox.send(do="log", run=run, metrics=batch, params={})


def _now() -> int:
    return int(time.time() * 1000)


@contextmanager
def _needed(uri: str) -> Iterator[None]:
    """Turn any error of the store into one that names the store."""
    try:
        yield
    except AlsegError:
        raise
    except Exception as error:  # each kind of store raises errors of its own
        database = sqlite_file(uri)
        if database and (getattr(error, "errno", 0) in NO_ROOM or "disk is full" in str(error)):
            with name_file_in_errors(database):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        cure = "; start that server, or record elsewhere, as with tracking=csv"
        raise ConfigError(
            f"tracking.mlflow.uri {without_secrets(uri)}: {error}"
            + (cure if uri.startswith(("http:", "https:")) else "")
        ) from error


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
    from mlflow import MlflowClient

    database = sqlite_file(uri)
    if database is not None and not database.is_file():  # which sqlite would make
        raise ConfigError(f"there is no tracking store {without_secrets(uri)}")
    try:
        with _store_lock(uri):
            client = MlflowClient(uri)
            found = client.get_experiment_by_name(experiment)
        if found is None:
            raise ConfigError(f"{without_secrets(uri)} has no experiment {experiment!r}")
        runs, token = [], None
        while token != "":
            page = client.search_runs([found.experiment_id], page_token=token)
            runs += [run for run in page if _is_strategy_run(run.data.tags)]
            token = page.token or ""
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
    return "strategy" in tags and "mlflow.parentRunId" not in tags


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
) -> str:
    """Record a comparison as a run of its own, with its files.

    Returns:
        The run's id.

    Raises:
        ConfigError: if the store cannot be written to.
    """
    tracker = MLflowTracker(uri, experiment, "comparison")
    try:
        run_id = tracker.open(folder, None, {}, {"kind": "comparison", **tags})
        assert run_id is not None
        tracker.log_round(metrics, 0)
        tracker.close("FINISHED")
    except Exception as error:  # each kind of store raises errors of its own
        raise ConfigError(f"cannot write to {without_secrets(uri)}: {error}") from error
    return run_id


@contextmanager
def _store_lock(uri: str) -> Iterator[Path | None]:
    """Lock a sqlite store, which is made if it is not there, and give its folder.

    Other stores lock and make themselves.
    """
    database = sqlite_file(uri)
    if database is None:
        yield None
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with locked(database.with_name(database.name + ".lock")):
        if database.is_file() and database.stat().st_size == 0:
            database.unlink()  # sqlite makes one when it is asked about a store that is not there
        if not database.is_file():
            _make_store(database)
        yield database.parent


def _make_store(database: Path) -> None:
    """Make a sqlite store beside its place, so that a process killed meanwhile leaves none.

    MLflow builds the schema in hundreds of steps, and cannot go on from the middle of them.
    """
    for left in database.parent.glob(f"{TEMPORARY}*-{database.name}*"):
        left.unlink(missing_ok=True)  # by a process that was killed: we hold the lock
    scratch = database.with_name(f"{TEMPORARY}{secrets.token_hex(8)}-{database.name}")
    try:
        store = SqlAlchemyStore(f"sqlite:///{scratch.absolute()}", DEFAULT_ARTIFACTS)
        store.engine.dispose()  # all is in the file now
        try:
            os.link(scratch, database)
        except FileExistsError:
            pass  # another process was faster, where there are no locks
        except OSError:  # no hard links here
            os.replace(scratch, database)
    finally:
        scratch.unlink(missing_ok=True)
