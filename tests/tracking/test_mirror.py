"""What MLflow shows is derived from the run folder: sent once, whoever sends it and whenever."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from alseg.core.errors import DataError
from alseg.run.folder import SENT_FILE, TRACKING_FILE, TRAINING_CURVES_FILE
from alseg.sync import sync_all
from alseg.tracking.csv import CSVTracker
from alseg.tracking.mirror import Entry, mirror
from alseg.tracking.mlflow_store import MLflowStore
from alseg.tracking.record import RunRecord, curve_points, finished_rounds
from tests.conftest import Outcome
from tests.smoke_runs import run_smoke
from tests.tracking.builders import TrackedRun, history, stored_runs

CURVES = f"rounds/round_01/{TRAINING_CURVES_FILE}"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Makes empty stores, each a copy of the first: to make one takes seconds."""
    folder = tmp_path_factory.mktemp("stores")
    MLflowStore(f"sqlite:///{folder}/empty.db", "mirror", "run")
    numbers = iter(range(1000))

    def new() -> str:
        own = folder / str(next(numbers))
        own.mkdir()
        shutil.copy(folder / "empty.db", own / "mlflow.db")
        # its experiment keeps files beside the first store
        return f"sqlite:///{own}/mlflow.db"

    return new


def content(store: str, experiment: str) -> dict[str, Any]:
    """All that a store has of the only run of an experiment, without the ids of runs."""
    client = MlflowClient(store)

    def of(run: Any) -> dict[str, Any]:
        points = {
            (name, point.step, point.timestamp, str(point.value))
            for name in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, name)
        }
        info = run.info
        tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
        return {
            "info": (info.run_name, info.status, info.start_time, info.end_time),
            "tags": tags,
            "params": run.data.params,
            "points": points,
            "files": files(info.run_id, None),
        }

    def files(run_id: str, folder: str | None) -> set[str]:
        found = set()
        for entry in client.list_artifacts(run_id, folder):
            found |= files(run_id, entry.path) if entry.is_dir else {entry.path}
        return found

    parent, nested = stored_runs(store, experiment)
    return {"run": of(parent), **{number: of(run) for number, run in nested.items()}}


def test_a_finished_run_gives_an_empty_store_all_that_the_live_one_has(
    train: Callable[..., Outcome], stores: Callable[[], str], tmp_path: Path
) -> None:
    live, later = stores(), stores()
    where = (f"tracking.mlflow.uri={live}", "experiment_name=equal", "trainer.log_every_n_steps=1")
    run = train("strategy=variance", *where, tracking="mlflow")
    assert run.exit_code == 0, run.err
    expected = content(live, "equal")
    assert set(expected) == {"run", "1", "2"}
    assert {"metrics.csv", CURVES} <= expected["run"]["files"]
    store = MLflowStore(later, "equal", "variance seed 1", ["*.ckpt"])
    mirror(run.folder, store)
    assert content(later, "equal") == expected
    # and once more, in this process and in another one
    for again in (store, MLflowStore(later, "equal", "variance seed 1", ["*.ckpt"])):
        mirror(run.folder, again)
    sync_all([run.folder])  # to the store of its settings
    for uri in (live, later):
        assert content(uri, "equal") == expected

    # the curves of the store are those of the run folder
    _, nested = stored_runs(live, "equal")
    for number, stored in nested.items():
        points = curve_points(run.folder, int(number))
        names = {point.name for point in points}
        assert {"loss/train", "dice/val"} <= names == set(stored.data.metrics)
        for name in names:
            curve = [(point.step, point.value) for point in points if point.name == name]
            assert history(live, stored, name) == curve


def test_a_round_that_only_repeats_volumes_is_recorded_everywhere(
    stores: Callable[[], str], tmp_path: Path
) -> None:
    store, dice = stores(), {1: (5, 0.5), 2: (7, 0.6), 3: (7, 0.75)}
    for last in (2, 3):  # the second process repeats what the first one has done
        run = TrackedRun(tmp_path / "run", store, csv=CSVTracker())
        run.open()
        for number in range(1, last + 1):
            run.train(number, dice[number][0], {0: {"loss/train": 1.0 / number}})
            run.finish(number, *dice[number])
        run.trackers.close("FINISHED")
    parent, nested = stored_runs(store)
    assert history(store, parent, "dice/test") == list(dice.values())
    assert parent.data.metrics["dice/test"] == 0.75  # that of the last round
    assert [nested[n].data.tags["labelled"] for n in ("1", "2", "3")] == ["5", "7", "7"]
    assert [history(store, nested[n], "loss/train") for n in ("2", "3")] == [
        [(0, 1 / 2)],
        [(0, 1 / 3)],
    ]
    lines = (run.folder / "csv/metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "5", "7", "7"]


def test_what_is_missed_between_a_round_and_its_mirror_arrives(
    stores: Callable[[], str], tmp_path: Path
) -> None:
    store, folder = stores(), tmp_path / "run"
    killed = TrackedRun(folder, store)
    killed.open()
    killed.train(1, 5, {0: {"loss/train": 1.0}, 1: {"loss/train": 0.5}})
    killed.write_metrics(1, 5, 0.5)  # and no more: it never said that the round is finished
    parent, nested = stored_runs(store)
    assert (parent.data.metrics, parent.info.status) == ({}, "RUNNING")
    assert nested["1"].info.status == "RUNNING"
    resumed = TrackedRun(folder, store)
    resumed.open()
    resumed.trackers.log_rounds()  # as a resumed run does before its next round
    resumed.train(2, 7, {0: {"loss/train": 0.9}})
    resumed.finish(2, 7, 0.75)
    resumed.trackers.close("FINISHED")
    parent, nested = stored_runs(store)
    assert history(store, parent, "dice/test") == [(5, 0.5), (7, 0.75)]
    assert history(store, parent, "area") == [(5, 0.5), (7, 0.625)]
    assert history(store, nested["1"], "loss/train") == [(0, 1.0), (1, 0.5)]
    assert {r.info.status for r in (parent, *nested.values())} == {"FINISHED"}


def test_training_curves_are_in_the_store_while_the_training_goes_on(
    stores: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores()
    run = TrackedRun(tmp_path / "run", store)
    run.open()
    monkeypatch.setattr("alseg.tracking.curves.FLUSH_SECONDS", 0.0)
    (logger,) = run.trackers.round_loggers(1, 5, tmp_path / "run/rounds/round_01")
    logger.log_metrics({"loss/train": 0.5}, 3)
    _, nested = stored_runs(store)
    assert nested["1"].data.metrics == {"loss/train": 0.5}
    assert nested["1"].info.status == "RUNNING"


def test_a_repeated_training_with_other_settings_comes_on_top(
    stores: Callable[[], str], tmp_path: Path
) -> None:
    store, folder = stores(), tmp_path / "run"
    run = TrackedRun(folder, store)
    run.open()
    run.train(1, 5, {0: {"loss/train": 1.0}})
    run.trackers.close("KILLED")
    shutil.rmtree(folder / "rounds/round_01")  # as resume_force=true does
    again = TrackedRun(folder, store)
    again.open()
    again.train(1, 5, {0: {"loss/train": 0.25}})
    again.trackers.close("FINISHED")
    _, nested = stored_runs(store)
    assert history(store, nested["1"], "loss/train") == [(0, 1.0), (0, 0.25)]


def test_a_file_is_sent_again_when_it_has_changed_and_only_then(
    stores: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    upload = MLflowStore.upload

    def counted(self: MLflowStore, run_id: str, folder: Path, path: Path) -> None:
        sent.append(path.as_posix())
        upload(self, run_id, folder, path)

    monkeypatch.setattr(MLflowStore, "upload", counted)
    uri = stores()
    run = TrackedRun(tmp_path / "run", uri)
    run.open()
    (run.folder / "notes.txt").write_text("one")
    (run.folder / "other.txt").write_text("the same")
    run.trackers.log_rounds()
    (run.folder / "notes.txt").write_text("two")
    run.trackers.log_rounds()
    run.trackers.close("FINISHED")
    assert sent == ["notes.txt", "other.txt", "notes.txt"]
    for spoiled in ("", "[]", '{"run": 3}', None):  # the list of what was sent is no more than help
        if spoiled is None:
            (run.folder / SENT_FILE).unlink()
        else:
            (run.folder / SENT_FILE).write_text(spoiled)
        sent.clear()
        mirror(run.folder, MLflowStore(uri, "mirror", "run"))
        assert sent == ["notes.txt", "other.txt"]
    parent, _ = stored_runs(uri)
    path = MlflowClient(uri).download_artifacts(parent.info.run_id, "notes.txt", str(tmp_path))
    assert Path(path).read_text(encoding="utf-8") == "two"


def test_a_run_that_was_deleted_in_the_store_is_sent_anew(
    stores: Callable[[], str], tmp_path: Path
) -> None:
    store = stores()
    run = TrackedRun(tmp_path / "run", store)
    run.open()
    run.finish(1, 5, 0.5)
    run.trackers.close("FINISHED")
    parent, _ = stored_runs(store)
    MlflowClient(store).delete_run(parent.info.run_id)
    mirror(run.folder, MLflowStore(store, "mirror", "run"))
    experiment = [parent.info.experiment_id]
    again = MlflowClient(store).search_runs(experiment, "tags.strategy = 'random'")
    assert [r.data.metrics["dice/test"] for r in again] == [0.5]


def test_what_the_store_refuses_holds_up_nothing_behind_it(
    stores: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = stores()
    run = TrackedRun(tmp_path / "run", store)
    run.open({"good": "1", "#": "2"})
    run.train(1, 5, {0: {"loss/train": 0.5}})

    def refuse(*arguments: object) -> None:
        raise MlflowException.invalid_parameter_value("no such value")

    monkeypatch.setattr(run.mlflow.store.client, "set_tag", refuse)
    (run.folder / "file.txt").write_text("x")
    run.trackers.close("FAILED", "it was so")
    parent, _ = stored_runs(store)
    assert parent.data.params == {"good": "1"}
    assert parent.info.status == "FAILED"
    files = MlflowClient(store).list_artifacts(parent.info.run_id)
    assert "file.txt" in {file.path for file in files}
    assert caplog.text.count("MLflow refuses failure") == 1
    assert caplog.text.count("key='#'") == 1


def test_a_damaged_record_ends_a_resumption_in_a_sentence_and_deleting_it_mends_that(
    train: Callable[..., Outcome], stores: Callable[[], str]
) -> None:
    short = ("strategy=full", "steps_per_round=1", "pictures=0", f"tracking.mlflow.uri={stores()}")
    run = train(*short, tracking="mlflow")
    assert run.exit_code == 0, run.err
    path = run.folder / TRACKING_FILE
    path.write_text("{}")
    resumed = train(resume=run.folder, smoke=False)
    assert resumed.exit_code == 2
    assert f"{path} does not say how the run is tracked" in resumed.err
    path.unlink()
    resumed = train(resume=run.folder, smoke=False)
    assert resumed.exit_code == 0, resumed.err
    assert [r.metrics["pool/labelled"] for r in finished_rounds(run.folder)] == [7]


def test_sync_says_what_it_has_done(
    train: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    short = ("strategy=full", "steps_per_round=1", "pictures=0")
    untracked = train(*short)
    relative = train(*short, "output_dir=places", tracking="mlflow")  # where the run was started
    assert relative.exit_code == 0, relative.err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sync_all([tmp_path])
    assert capfd.readouterr().out.splitlines() == [
        f"{untracked.folder}: not recorded in MLflow, so there is nothing to send",
        f"{relative.folder}: the tracking store is up to date",
    ]
    assert not list((tmp_path / "elsewhere").iterdir())
    sync_all([tmp_path / "elsewhere"])
    assert "no run has been recorded there: nothing to send" in capfd.readouterr().out
    with pytest.raises(DataError, match="there is no folder"):
        sync_all([tmp_path / "nowhere"])


READERS: dict[str, Callable[[Path], object]] = {
    TRACKING_FILE: RunRecord.load,
    "metrics.csv": finished_rounds,
    CURVES: lambda folder: curve_points(folder, 1),
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (TRACKING_FILE, "{}"),
        (TRACKING_FILE, '{"started": "yesterday", "key": "k"}'),
        (TRACKING_FILE, '{"started": 1, "key": "k", "rounds": {"1": {"started": "no"}}}'),
        (TRACKING_FILE, '{"started": 1, "key": "k", "tags": {"a": 7}}'),
        (TRACKING_FILE, '{"started": 1, "tags": {}}'),
        ("metrics.csv", "round,labelled,test_dice\n1,5,high\n"),
        ("metrics.csv", "round,labelled\n1,5\n"),
        ("metrics.csv", "round,labelled,test_dice\n1,5,0.5,6\n"),
        ("metrics.csv", "round,labelled,test_dice\n1,5,0.5\n2,4,0.5\n"),
        (CURVES, "step,loss/train\n1,0.5\n"),
        (CURVES, "step,time_ms,loss/train\n,5,0.5\n"),
        (CURVES, "step,time_ms\nnan,5\n"),
        (CURVES, b"\xff\xfe\x00"),
    ],
)
def test_a_damaged_file_is_named(name: str, text: str | bytes, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "rounds/round_01").mkdir(parents=True)
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=re.escape(str(path))):
        READERS[name](folder)


class Counted:
    """A store that counts: the points of each metric of a run."""

    def __init__(self) -> None:
        self.points: Counter[str] = Counter()

    def send(self, entry: Entry, key: str) -> None:
        self.points.update(f"{entry.number} {point.name}" for point in entry.points())

    def send_files(self, folder: Path, key: str) -> None:
        pass


def test_a_larger_pool_sends_larger_tables_and_no_further_metrics(tmp_path: Path) -> None:
    found = []
    for n_volumes in (12, 20):
        folder, data = tmp_path / f"run_{n_volumes}", tmp_path / f"data_{n_volumes}"
        settings = (f"data.phantom.n_volumes={n_volumes}", "data.num_workers=0", "tracking=csv")
        run_smoke(folder, data, "strategy=entropy", *settings)
        mirror(folder, store := Counted())
        n_scores = len((folder / "rounds/round_01/scores.csv").read_text().splitlines())
        found.append((store.points, n_scores))
    (small, few), (large, many) = found
    assert many > few
    assert small == large
    assert {"0 dice/test", "1 dice/val"} <= set(small)
