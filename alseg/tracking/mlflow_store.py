"""An MLflow store as a place that mirrors run folders."""

from __future__ import annotations

import logging
import posixpath
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from alseg.core.errors import DataError
from alseg.run.folder import SENT_FILE
from alseg.system.files import read_json, write_json
from alseg.tracking.mirror import Entry, files_to_send
from alseg.tracking.mlflow_access import (
    errors_named,
    experiment_id,
    patiently,
    search_runs,
    store_lock,
)
from alseg.tracking.record import RUNNING, Point, Span

log = logging.getLogger(__name__)

T = TypeVar("T")

BATCH_PARAMS, BATCH_METRICS = 100, 1000  # the most that MLflow takes in one call
MAX_NAME, MAX_PARAM, MAX_TAG = 250, 6000, 5000  # characters
FAILURE_TAG = "failure"
KEY_TAG = "run_key"  # by which a run folder's run is found
PARENT_TAG = "mlflow.parentRunId"
REFUSED = "INVALID_PARAMETER_VALUE"  # MLflow's word for a value that it would refuse again
CODE = ("_target_", "_partial_")  # how settings end that name code


@dataclass
class Known:
    """What the store has of a run, as far as is known here."""

    run_id: str
    status: str = RUNNING
    ended: int | None = None
    params: set[str] = field(default_factory=set)
    failure: str = ""
    metrics: tuple[str, ...] = ()
    points: set[tuple[str, int, int]] | None = None  # name, step, milliseconds; None: not asked


class MLflowStore:
    """An experiment of an MLflow store.

    A run's metrics have the number of labelled volumes as their step, so that the chart of several
    runs in the MLflow UI is the learning curve; a nested run for each round has its training
    curves. Runs are found by a tag with their keys, rounds by the tag with their numbers.

    Args:
        uri: the tracking store, such as ``sqlite:////home/me/runs/mlflow.db`` or
            ``http://host:5000``.
        experiment: the MLflow experiment's name, made if it is not there.
        run_name: how the UI calls the run.
        skip: patterns (``*.ckpt``) of the names of files and folders that are not uploaded.

    Raises:
        ConfigError: if the store cannot be opened.
    """

    def __init__(self, uri: str, experiment: str, run_name: str, skip: Sequence[str] = ()) -> None:
        self.uri, self.run_name, self.skip = uri, run_name, skip
        with errors_named(uri), store_lock(uri) as folder:
            self.client = MlflowClient(uri)
            location = (folder / "mlartifacts").absolute().as_uri() if folder else None
            self.experiment_id = patiently(lambda: experiment_id(self.client, experiment, location))
        self._known: dict[tuple[str, int], Known] = {}  # by run key and round
        self._reported: set[str] = set()

    def forget(self) -> None:
        """Ask the store again what it has, as after an error, when that is uncertain."""
        self._known = {}

    def send(self, entry: Entry, key: str) -> None:
        """Send what the store misses of an entry, its end last: one that has ended is complete."""
        known, span = self._known_of(entry, key), entry.span
        if span.has_ended and (known.status, known.ended) == (span.status, span.ended):
            return
        params = [
            Param(name, value[:MAX_PARAM])
            for name, value in entry.settings.items()
            if name.rpartition(".")[2] not in CODE and name not in known.params
        ]
        for some in batches(params, BATCH_PARAMS):
            self.log(known.run_id, params=some)
            known.params |= {param.key for param in some}
        there = self._points_of(known)
        points = [point for point in self._named(entry.points()) if _key(point) not in there]
        for batch in batches(points, BATCH_METRICS):
            self.log(known.run_id, metrics=batch)
            there |= {_key(point) for point in batch}
        self._send_failure(known, entry.failure[:MAX_TAG])
        self._send_end(known, span)

    def send_files(self, folder: Path, key: str) -> None:
        """Upload the files of a run folder that have changed since they were uploaded.

        Which ones have not is noted in the run folder, for MLflow does not say what it holds.
        """
        run_id, cursor = self._known[key, 0].run_id, folder / SENT_FILE
        before = _sent(cursor, run_id)
        sent = dict(before)
        try:
            for path in files_to_send(folder, self.skip, self._report_link):
                details = (folder / path).stat()
                version = f"{details.st_size} {details.st_mtime_ns}"
                if sent.get(path.as_posix()) != version:
                    self.upload(run_id, folder, path)
                    sent[path.as_posix()] = version
        finally:
            if sent != before:
                write_json(cursor, {"run": run_id, "files": sent})

    def upload(self, run_id: str, folder: Path, path: Path) -> None:
        """Upload a file of a folder under its path in it."""
        parent = path.parent.as_posix() if path.parent.name else None
        call = partial(self.client.log_artifact, run_id, str(folder / path), parent)
        self._unless_refused(path.as_posix(), call)

    def create(self, name: str, tags: Mapping[str, str], started: int) -> str:
        """Make a run, and give its id."""
        created = patiently(
            lambda: self.client.create_run(
                self.experiment_id, start_time=started, tags=dict(tags), run_name=name
            )
        )
        return str(created.info.run_id)

    def _known_of(self, entry: Entry, key: str) -> Known:
        """What the store has of an entry, which is made if the store has nothing."""
        place = (key, entry.number)
        if place not in self._known and entry.run is not None:
            self._known_of(entry.run, key)  # which finds the rounds as well
        if place not in self._known and entry.run is None:
            self._find(key)
        if place not in self._known:
            self._known[place] = Known(self._create(entry, key))
        return self._known[place]

    def _find(self, key: str) -> None:
        """Ask for a run by its key, and for its nested runs."""
        for run in self._search(KEY_TAG, key):
            self._known[key, 0] = _known(run)
            for child in self._search(PARENT_TAG, run.info.run_id):
                self._known[key, int(child.data.tags["round"])] = _known(child)

    def _search(self, tag: str, value: str) -> Iterator[Run]:
        return search_runs(self.client, self.experiment_id, f"tags.`{tag}` = '{value}'")

    def _create(self, entry: Entry, key: str) -> str:
        if entry.run is None:
            tags = {**entry.tags, **origin_tags(entry.origin, entry.tags), KEY_TAG: key}
            return self.create(self.run_name, tags, entry.span.started)
        # without the strategy: the UI would group nested runs with their parents
        tags = {PARENT_TAG: self._known_of(entry.run, key).run_id, **entry.tags}
        return self.create(f"{self.run_name} round {entry.number}", tags, entry.span.started)

    def _points_of(self, known: Known) -> set[tuple[str, int, int]]:
        """The points that the store has of a run; asked for once."""
        if known.points is None:
            known.points = set()
            for metric in known.metrics:
                history = patiently(partial(self.client.get_metric_history, known.run_id, metric))
                known.points |= {(metric, point.step, point.timestamp) for point in history}
        return known.points

    def _named(self, points: Sequence[Point]) -> list[Point]:
        """The points under names that MLflow accepts; each change is reported once."""
        names = {point.name: accepted_name(point.name) for point in points}
        for name, accepted in names.items():
            if accepted != name:
                self._report(f"MLflow refuses the name {name!r}: it is {accepted!r} there")
        return [point._replace(name=names[point.name]) for point in points]

    def log(self, run_id: str, metrics: Sequence[Point] = (), params: Sequence[Param] = ()) -> None:
        """Send one batch; what MLflow refuses of it is reported and left out."""
        rows = [Metric(*point) for point in metrics]
        call = partial(self.client.log_batch, run_id, metrics=rows, params=list(params))
        if len(metrics) + len(params) == 1:
            self._unless_refused(str([*metrics, *params][0]), call)
            return
        try:
            patiently(call)
        except MlflowException as error:
            if error.error_code != REFUSED:
                raise
            for point in metrics:  # MLflow refuses a whole batch for one value in it
                self.log(run_id, metrics=[point])
            for param in params:
                self.log(run_id, params=[param])

    def _unless_refused(self, what: str, call: Callable[[], object]) -> None:
        """Call the store; report what it refuses, for it would refuse it again."""
        try:
            patiently(call)
        except MlflowException as error:
            if error.error_code != REFUSED:
                raise
            self._report(f"MLflow refuses {what}, which is left out: {error}")

    def _send_failure(self, known: Known, failure: str) -> None:
        if failure == known.failure:
            return
        if failure:
            call = partial(self.client.set_tag, known.run_id, FAILURE_TAG, failure)
            self._unless_refused(FAILURE_TAG, call)
        else:
            patiently(lambda: self.client.delete_tag(known.run_id, FAILURE_TAG))
        known.failure = failure

    def _send_end(self, known: Known, span: Span) -> None:
        if span.has_ended:
            patiently(lambda: self.client.set_terminated(known.run_id, span.status, span.ended))
        elif known.status != RUNNING:
            patiently(lambda: self.client.update_run(known.run_id, status=RUNNING))
        known.status, known.ended = span.status, span.ended

    def _report_link(self, link: Path) -> None:
        self._report(f"{link} is a link out of the run folder, and not sent to MLflow")

    def _report(self, warning: str) -> None:
        if warning not in self._reported:
            self._reported.add(warning)
            log.warning(warning)


def _key(point: Point) -> tuple[str, int, int]:
    return point.name, point.step, point.time_ms


def _known(run: Run) -> Known:
    """What a run of the store says of itself."""
    return Known(
        run.info.run_id,
        run.info.status,
        run.info.end_time,
        params=set(run.data.params),
        failure=run.data.tags.get(FAILURE_TAG, ""),
        metrics=tuple(run.data.metrics),
    )


def _sent(cursor: Path, run_id: str) -> dict[str, str]:
    """Which files have been uploaded to a run: their versions by their paths."""
    try:
        content = read_json(cursor)
    except DataError:  # none, or a damaged one: all are uploaded again
        return {}
    files = content.get("files")
    return files if content.get("run") == run_id and isinstance(files, dict) else {}


def origin_tags(origin: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """Tags that say what made a run, who, and where its folder is, beside those that it has."""
    found = {
        "mlflow.source.name": origin["program"],
        "mlflow.source.type": "LOCAL",
        "mlflow.user": origin["user"],
        "run_folder": origin["folder"],
    }
    if "strategy" in tags:  # a paragraph that the UI shows above the metrics
        data = f" on {tags['data']}" if "data" in tags else ""
        found["mlflow.note.content"] = (
            f"Strategy {tags['strategy']}{data}, seed {tags['seed']}, by `{origin['command']}`"
        )
    return found


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


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in groups of at most ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))
