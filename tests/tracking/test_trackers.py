"""Runs recorded in several places at once; no run of a store is left running."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient

from alseg.config.composition import composed, instantiate
from alseg.config.settings import load_config
from alseg.core.errors import TrainingError
from alseg.engine.runs import with_overrides
from alseg.tracking.csv import CSVTracker
from alseg.tracking.mlflow import MLflowTracker
from alseg.tracking.tracker import Trackers
from alseg.training.module import SegmentationModule
from alseg.training.scoring_module import ScoringModule
from tests.conftest import Outcome
from tests.tracking.builders import stored_runs

Train = Callable[..., Outcome]

EACH_STEP = ("strategy=random", "trainer.log_every_n_steps=1", "checkpoint_every_n_steps=2")
FILES = "[mlflow,csv,tensorboard]"


@pytest.fixture
def fails_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a method of the module that is trained fail at its nth call; without error: Ctrl-C."""

    def arrange(method: str, call: int, error: Exception | None) -> None:
        kind = ScoringModule if method == "predict_step" else SegmentationModule
        original, calls = getattr(kind, method), iter(range(1, 1000))

        def failing(self: SegmentationModule | ScoringModule, *arguments: Any, **more: Any) -> Any:
            if next(calls) == call:
                if error is not None:
                    raise error
                os.kill(os.getpid(), signal.SIGINT)
            return original(self, *arguments, **more)

        monkeypatch.setattr(kind, method, failing)

    return arrange


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all tests: to make it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each metric in the event files of a folder."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulators.EventAccumulator(str(folder), {"scalars": 0}).Reload()
    return {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def test_a_killed_run_goes_on_in_all_its_logs_and_no_row_is_there_twice(
    train: Train, fails_at: Callable[..., None], store: str
) -> None:
    pytest.importorskip("tensorboard")
    whole = train(*EACH_STEP, tracking="csv")
    assert whole.exit_code == 0, whole.err
    fails_at("training_step", 4, TrainingError("the fourth step"))
    run = train(
        *EACH_STEP, f"tracking.mlflow.uri={store}", "experiment_name=killed", tracking=FILES
    )
    assert run.exit_code == 2
    parent, nested = stored_runs(store, "killed")
    assert (parent.info.status, parent.data.tags["failure"]) == ("FAILED", "the fourth step")
    assert nested["1"].info.status == "FAILED"
    resumed = train(resume=run.folder, smoke=False)
    assert resumed.exit_code == 0, resumed.err
    assert "tensorboard --logdir" in resumed.out

    client = MlflowClient(store)
    parent, nested = stored_runs(store, "killed")
    assert {r.info.status for r in (parent, *nested.values())} == {"FINISHED"}
    for folder, stored in ((".", parent), ("rounds/round_01", nested["1"])):
        expected = pd.read_csv(
            whole.folder / folder / "csv/metrics.csv",
            index_col="step",
            float_precision="round_trip",
        )
        differing = [n for n in expected if n.startswith("time") or "preprocessed" in n]
        expected = expected.drop(columns=differing)
        table = pd.read_csv(
            run.folder / folder / "csv/metrics.csv", index_col="step", float_precision="round_trip"
        )
        pd.testing.assert_frame_equal(table.drop(columns=differing), expected)
        in_events = events(run.folder / folder / "tensorboard")
        for name in expected:
            points = [(int(step), value) for step, value in expected[name].dropna().items()]
            history = client.get_metric_history(stored.info.run_id, name)
            assert sorted((p.step, p.value) for p in history) == points, name
            assert [step for step, _ in in_events[name]] == [step for step, _ in points], name
            assert [v for _, v in in_events[name]] == pytest.approx([v for _, v in points])
    loss = pd.read_csv(whole.folder / "rounds/round_01/csv/metrics.csv")["loss/train"]
    assert loss.notna().sum() == 4  # so there were steps to be repeated


@pytest.mark.parametrize(
    ("method", "call", "error", "exit_code", "status"),
    [
        ("training_step", 2, None, 130, "KILLED"),
        ("test_step", 1, TrainingError("no"), 2, "FAILED"),
        ("predict_step", 1, None, 130, "KILLED"),
    ],
)
def test_nothing_stays_running_whatever_ends_a_run(
    method: str,
    call: int,
    error: Exception | None,
    exit_code: int,
    status: str,
    train: Train,
    fails_at: Callable[..., None],
    store: str,
) -> None:
    fails_at(method, call, error)
    where = (f"tracking.mlflow.uri={store}", f"experiment_name={method}")
    assert train(*where, tracking="mlflow").exit_code == exit_code
    parent, nested = stored_runs(store, method)
    assert parent.info.status == status
    assert {number: run.info.status for number, run in nested.items()} == {"1": status}


def test_a_run_that_is_stopped_while_it_is_announced_does_not_stay_running(
    train: Train, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    announce = MLflowTracker.open

    def stopped(self: MLflowTracker, *arguments: Any) -> None:
        announce(self, *arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MLflowTracker, "open", stopped)
    where = (f"tracking.mlflow.uri={store}", "experiment_name=announced")
    assert train(*where, tracking="mlflow").exit_code == 130
    parent, _ = stored_runs(store, "announced")
    assert parent.info.status == "KILLED"


def test_the_environment_names_the_store_unless_the_command_does(
    train: Train, monkeypatch: pytest.MonkeyPatch, store: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    short = ("strategy=full", "steps_per_round=1", "experiment_name=environment")
    run = train(*short, tracking="mlflow")
    assert run.exit_code == 0, run.err
    message = f"recording in MLflow: experiment environment in {store} (from MLFLOW_TRACKING_URI)"
    assert message in run.out
    assert f"python -m alseg.ui {store} --experiment environment" in run.out
    stored_runs(store, "environment")
    assert not list(tmp_path.glob("**/mlflow.db"))
    # a run continues where it was recorded, whatever the environment says by now
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert load_config(run.folder).tracking.mlflow.uri == store
    resumed = with_overrides(load_config(run.folder), run.folder, ["pictures=0"])
    assert resumed.tracking.mlflow.uri == store
    explicit = composed(["tracking.mlflow.uri=sqlite:///mine.db"])
    assert explicit.tracking.mlflow.uri == "sqlite:///mine.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert composed([]).tracking.mlflow.uri == "sqlite:///runs/mlflow.db"


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_library_that_is_not_installed_is_named_with_the_command_that_installs_it(
    name: str, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alseg.tracking.loggers.find_spec", lambda module: None)
    run = train(tracking=name)
    assert run.exit_code == 2
    assert run.err == (
        f"alseg: error: tracking={name} needs the package {name}: pip install 'alseg[{name}]'\n"
    )


def test_wandb_keeps_a_run_in_files_and_connects_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    refused: list[Any] = []
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:  # its own process, which writes the files
            refused.append(address)
            raise ConnectionRefusedError(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for n_steps in (2, 3):  # the second process repeats what the first one has done
        tracker = composed_tracker("wandb", "strategy=random", "experiment_name=offline")
        tracker.open(tmp_path, {"seed": 1}, {"strategy": "random"})
        loggers = tracker.round_loggers(1, 5, tmp_path / "rounds" / "round_01")
        for logger in loggers:
            for step in range(n_steps):
                logger.log_metrics({"loss/train": 1 / (step + 1)}, step)
            logger.finalize("success")
        (tmp_path / "metrics.csv").write_text("round,labelled,test_dice\n1,5,0.5\n")
        tracker.log_rounds()
        tracker.close("FAILED", "it was so")
    assert not refused
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len({path.name for path in files}) == 1  # two processes, one run
    records = [record for path in files for record in wandb_records(path)]
    rows = [
        {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    rows = [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]
    assert rows == [
        {"round_01/loss/train": 1.0, "trainer/global_step": 0},
        {"round_01/loss/train": 0.5, "trainer/global_step": 1},
        {"area": 0.5, "dice/test": 0.5, "pool/labelled": 5.0, "trainer/global_step": 5},
        {"round_01/loss/train": 1 / 3, "trainer/global_step": 2},
    ]
    assert {record.exit.exit_code for record in records if record.HasField("exit")} == {1}
    assert f"wandb sync {tmp_path}/wandb/*run-*" in tracker.views().values()


def composed_tracker(choice: str, *overrides: str) -> Trackers:
    """What a choice of the group ``tracking`` builds."""
    return Trackers(instantiate(composed([f"tracking={choice}", *overrides]).tracking))


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, which is a LevelDB log: checksum, length, kind, bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:  # of a block
            at += room
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(part)
            yield record
            part = b""


def test_a_tracker_that_cannot_be_closed_leaves_no_other_open(tmp_path: Path) -> None:
    class Broken(CSVTracker):
        def close(self, status: str, reason: str = "") -> None:
            raise OSError("broken")

    whole = CSVTracker()
    whole.name = "whole"
    for order in ([Broken(), whole], [whole, Broken()]):
        trackers = Trackers({str(index): tracker for index, tracker in enumerate(order)})
        trackers.open(tmp_path, {}, {})
        for logger in trackers.round_loggers(1, 5, tmp_path / "rounds"):
            logger.log_metrics({"loss/train": 1.0}, 3)
        with pytest.raises(OSError, match="broken"):
            trackers.close("FINISHED")
    row = pd.read_csv(tmp_path / "rounds/whole/metrics.csv").iloc[0]
    assert (row["step"], row["loss/train"]) == (3, 1.0)


def test_a_run_that_is_tracked_nowhere_leaves_its_curves_in_its_folder(tmp_path: Path) -> None:
    trackers = Trackers({})
    trackers.open(tmp_path, {"a": 1}, {})
    (logger,) = trackers.round_loggers(1, 5, tmp_path / "rounds/round_01")
    logger.log_metrics({"loss/train": 0.5}, 3)
    logger.log_metrics({"dice/val": 0.25}, 3)
    trackers.close("FINISHED")
    row = pd.read_csv(tmp_path / "rounds/round_01/training_curves.csv").iloc[0]
    assert (row["step"], row["loss/train"], row["dice/val"]) == (3, 0.5, 0.25)
    for choice in ("none", "[]"):
        assert composed([f"tracking={choice}"]).tracking == {}
    assert list(composed(["tracking=[mlflow,wandb,csv]"]).tracking) == ["mlflow", "wandb", "csv"]
