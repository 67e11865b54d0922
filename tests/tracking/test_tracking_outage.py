"""The tracking store under parallel jobs, and one that goes away in the middle of a run."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from sqlalchemy import Engine, event

from alseg.core.errors import ConfigError, DiskFullError
from alseg.tracking import mlflow_access as access
from alseg.tracking.mlflow import MLflowTracker, send_missing
from alseg.tracking.mlflow_store import accepted_name
from alseg.tracking.record import Point
from tests.tracking.builders import TrackedRun, history, stored_runs


def test_a_link_out_of_the_run_folder_is_told_and_not_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri, folder = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "run"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "own.txt").write_text("own")
    (folder / "own_link.txt").symlink_to(folder / "own.txt")
    run = TrackedRun(folder, uri)
    run.open()
    run.trackers.log_rounds()
    run.trackers.close("FINISHED")
    parent, _ = stored_runs(uri)
    sent = [file.path for file in MlflowClient(uri).list_artifacts(parent.info.run_id)]
    assert sent == ["own.txt", "own_link.txt"]
    assert caplog.text.count(f"{folder / 'link.txt'} is a link out of the run folder") == 1


HOSTILE_NAMES = (
    "lésion (left) & œdème, 100%", "core+cyst #2", "core+cyst ,2", "a//b", "../up", "/root", ".",
    "a/./b", "n" * 400, "n" * 401,
)  # fmt: skip


def test_any_class_name_becomes_a_metric_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert accepted_name("test_dice_left lung") == "test_dice_left lung"
    assert accepted_name("val/dice_liver") == "val/dice_liver"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = TrackedRun(tmp_path / "run", uri)
    run.open()
    values = {name: float(index) for index, name in enumerate(HOSTILE_NAMES)}
    run.train(1, 5, {step: values | {"dice/val": 0.5} for step in (1, 2)})
    run.trackers.close("FINISHED")
    parent, nested = stored_runs(uri)
    recorded = nested["1"].data.metrics
    assert recorded == {accepted_name(n): v for n, v in values.items()} | {"dice/val": 0.5}
    assert len(recorded) == len(HOSTILE_NAMES) + 1
    assert caplog.text.count("core+cyst #2") == 1  # reported once
    # one value of a batch is refused, the others are not
    store, run_id = run.mlflow.store, parent.info.run_id
    points = [Point("good", 1.0, 1, 3), Point("../bad", 1.0, 1, 3)]
    store.log(run_id, metrics=points, params=[Param("p", "1"), Param("#", "2")])
    data = store.client.get_run(run_id).data
    assert data.metrics["good"] == 1.0
    assert data.params["p"] == "1"
    assert "../bad" in caplog.text


def build_store(folder: Path, kill_at: float = math.inf) -> None:
    """Make a store; this process is killed once its file has so many bytes."""

    def look(*event: object) -> None:
        if any(path.stat().st_size >= kill_at for path in folder.glob(".tmp-*-mlflow.db")):
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", look)
    MLflowTracker(f"sqlite:///{folder}/mlflow.db", "killed", "run")
    event.remove(Engine, "before_cursor_execute", look)


@pytest.mark.parametrize("size_kib", [1, 300])
def test_a_kill_while_the_store_is_made_leaves_none(
    tmp_path: Path, size_kib: int, stores_are_made: None
) -> None:
    context = multiprocessing.get_context("fork")
    job = context.Process(target=build_store, args=(tmp_path, size_kib * 1024))
    job.start()
    job.join()
    assert job.exitcode == -signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists()
    (
        tmp_path / "mlflow.db"
    ).touch()  # as sqlite leaves it, when asked about a store that is not there
    build_store(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_a_locked_store_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "LOCKED_SECONDS", 5.0)
    calls: list[str] = []

    def locked_at_first() -> str:
        calls.append("call")
        if len(calls) < 3:
            raise MlflowException(
                "(raised as a result of Query-invoked autoflush) database is locked"
            )
        return "done"

    assert access.patiently(locked_at_first) == "done"
    monkeypatch.setattr(access, "LOCKED_SECONDS", 0.0)
    calls.clear()
    with pytest.raises(MlflowException, match="is locked"):
        access.patiently(locked_at_first)


FULL = (
    OSError(errno.ENOSPC, "No space left on device", "mlartifacts/1"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    MlflowException("(sqlite3.OperationalError) database or disk is full [SQL: INSERT INTO tags"),
)


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_store_on_a_full_disk_is_told_like_any_other_file(
    error: Exception, tmp_path: Path
) -> None:
    message = rf"cannot write {tmp_path}/mlflow.db: No space left on device \(\d+ MiB are free"
    with (
        pytest.raises(DiskFullError, match=message),
        access.errors_named(f"sqlite:///{tmp_path}/mlflow.db"),
    ):
        raise error


@pytest.mark.parametrize("name", ["plain", "it's $HOME & (co)"])
def test_a_deleted_experiment_is_told_with_the_way_back(tmp_path: Path, name: str) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MLflowTracker(uri, name, "run")
    tracker.store.client.delete_experiment(tracker.store.experiment_id)
    with pytest.raises(ConfigError, match="was deleted; take another experiment_name") as message:
        MLflowTracker(uri, name, "run")
    command = shlex.split(str(message.value).rpartition("restore it: ")[2])
    assert command[0] == f"MLFLOW_TRACKING_URI={uri}"
    assert command[-1] == tracker.store.experiment_id


def test_an_experiment_that_another_job_makes_meanwhile_is_taken(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = MLflowTracker(uri, "shared", "run")

    class Late(MlflowClient):
        asked = False

        def get_experiment_by_name(self, name: str) -> Any:
            found = super().get_experiment_by_name(name) if self.asked else None
            self.asked = True
            return found

    assert access.experiment_id(Late(uri), "shared", None) == first.store.experiment_id


def test_the_printed_command_that_sends_the_rest_can_be_pasted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my runs $HOME 'a'"
    folder.mkdir()
    run = TrackedRun(folder, f"sqlite:///{tmp_path}/mlflow.db")
    run.open()
    monkeypatch.setattr(run.mlflow.store.client, "set_terminated", lambda *a, **k: 1 / 0)  # away
    run.trackers.close("FINISHED")
    (command,) = re.findall("send the rest with: (.*)", caplog.text)
    assert shlex.split(command) == ["python", "-m", "alseg.sync", str(folder)]


N_JOBS = 6


def open_and_write(folder: Path, number: int, start: Barrier) -> None:
    """A job: all jobs open the store at one moment, and write at another."""
    mine = folder / str(number)
    mine.mkdir()
    start.wait()
    run = TrackedRun(mine, f"sqlite:///{folder}/mlflow.db", "shared")
    start.wait()
    run.open({f"setting.{i}": i for i in range(150)}, {"seed": str(number)})
    for round_number in range(1, 4):
        curve = {step: {"loss/train": 1 / (step + 1)} for step in range(20)}
        run.train(round_number, 5 * round_number, curve)
        run.finish(round_number, 5 * round_number, 0.1 * round_number)
    run.trackers.close("FINISHED")


def test_several_processes_share_a_fresh_sqlite_store(
    tmp_path: Path, stores_are_made: None
) -> None:
    context = multiprocessing.get_context("fork")  # MLflow has been imported: no seconds apart
    start = context.Barrier(N_JOBS)
    jobs = [
        context.Process(target=open_and_write, args=(tmp_path, number, start))
        for number in range(N_JOBS)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(300)
    assert [job.exitcode for job in jobs] == [0] * N_JOBS
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("shared")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert sorted(run.data.tags["seed"] for run in parents) == [
        str(number) for number in range(N_JOBS)
    ]
    assert {run.info.status for run in runs} == {"FINISHED"}
    for parent in parents:
        assert len(parent.data.params) == 150
        nested = [
            run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
        ]
        assert sorted(run.data.tags["labelled"] for run in nested) == ["10", "15", "5"]
        # the chart of the parents is the learning curve: Dice by the number of labelled volumes
        curve = client.get_metric_history(parent.info.run_id, "dice/test")
        assert sorted((point.step, round(point.value, 1)) for point in curve) == [
            (5, 0.1),
            (10, 0.2),
            (15, 0.3),
        ]
        assert all(
            len(client.get_metric_history(r.info.run_id, "loss/train")) == 20 for r in nested
        )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """``mlflow server`` on the loopback; killed at the end of the block."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"]
    with (folder / "server.log").open("a") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=os.environ
            | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_a_server_that_goes_away_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port, folder = free_port(), tmp_path / "run"
    folder.mkdir()
    uri = f"http://127.0.0.1:{port}"
    with pytest.raises(
        ConfigError, match=r"(?s)tracking.mlflow.uri http.*; start that server, or record elsewhere"
    ):
        MLflowTracker(uri, "outage", "run")  # a store that is away at the start is refused

    with server(tmp_path, port):
        run = TrackedRun(folder, uri)
        run.open({"a": 1}, {"seed": "1"})
        run.finish(1, 5, 0.1)
    caplog.clear()
    run.train(2, 10, {3: {"loss/train": 0.5}})
    run.finish(2, 10, 0.2)
    run.train(3, 15, {4: {"loss/train": 0.25}})
    run.trackers.close("FAILED", "it was so")
    assert caplog.text.count("the tracking store does not answer") == 2  # in the run, at its end
    assert f"python -m alseg.sync {folder}" in caplog.text

    with server(tmp_path, port):
        settings = {"uri": uri, "experiment": "mirror", "run_name": "run"}
        send_missing(folder, settings | {"_target_": "alseg.tracking.mlflow.MLflowTracker"})
        parent, nested = stored_runs(uri)
        assert parent.info.status == "FAILED"
        assert parent.data.tags["failure"] == "it was so"
        assert history(uri, parent, "dice/test") == [(5, 0.1), (10, 0.2)]
        files = {file.path for file in MlflowClient(uri).list_artifacts(parent.info.run_id)}
        assert files == {"metrics.csv", "rounds"}
        assert {number: r.info.status for number, r in nested.items()} == {
            "1": "FINISHED", "2": "FINISHED", "3": "FAILED",
        }  # fmt: skip
        assert history(uri, nested["2"], "loss/train") == [(3, 0.5)]
        # when it happened, not when it was sent
        assert nested["2"].info.end_time < nested["3"].info.start_time <= parent.info.end_time


def test_a_store_that_is_away_is_asked_now_and_then_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = TrackedRun(tmp_path / "run", uri)
    run.open()
    calls: list[str] = []
    is_away = True

    def log_batch(*arguments: Any, **more: Any) -> Any:
        calls.append("call")
        if is_away:
            raise ConnectionError("away: http://me:secret@host")
        return MlflowClient(uri).log_batch(*arguments, **more)

    monkeypatch.setattr(run.mlflow.store.client, "log_batch", log_batch)
    run.train(1, 5, {step: {"loss/train": 1.0} for step in range(3)})
    for number in range(1, 10):
        run.finish(number, 5, 0.5)
    assert len(calls) == 1
    assert "secret" not in caplog.text
    is_away, run.mlflow.retry_seconds = False, 0.0
    run.finish(10, 5, 0.5)
    assert "the tracking store is back" in caplog.text
    parent, nested = stored_runs(uri)
    assert history(uri, parent, "dice/test") == [(5, 0.5)] * 10
    assert len(history(uri, nested["1"], "loss/train")) == 3
