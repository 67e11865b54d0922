"""Signals, damage, full disks, changed settings: a run continues as if nothing had happened."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from alseg.active import round_loop
from alseg.core.units import Answer, Query
from alseg.oracles.simulated import SimulatedOracle
from alseg.run.folder import TRAINING_CURVES_FILE
from alseg.run.lock import locked_run
from alseg.run.state import RunState
from alseg.system.interruption import AT_ONCE_S, Interrupted, interruption
from alseg.tracking.record import curve_points
from alseg.training.callbacks.checkpoints import random_state, restore_random_state
from alseg.training.module import SegmentationModule
from alseg.training.scoring_module import ScoringModule
from tests.conftest import Outcome, write_msd
from tests.smoke_runs import run_smoke

Train = Callable[..., Outcome]

STEPS = (
    "steps_per_round=6", "val_interval=2", "checkpoint_every_n_steps=2", "pictures=0",
    "strategy=badge", "uncertainty.n_passes=1",
)  # fmt: skip
ROOT = Path(__file__).parents[2]


def results(folder: Path) -> dict[str, Any]:
    """What must not depend on an interruption, as text."""
    state = RunState.load(folder)
    found: dict[str, Any] = {"pool": state.pool, "queries": state.queries}
    found["history"] = state.history
    for path in sorted(folder.glob("rounds/*/*")):
        if path.suffix == ".ckpt":
            weights = torch.load(path, weights_only=True)["state_dict"]
            found[path.name] = {name: v.numpy().tobytes() for name, v in weights.items()}
        elif path.name == TRAINING_CURVES_FILE:
            # except their times, and Lightning's epoch, which a trainer that only tests begins at 0
            points = curve_points(folder, int(path.parent.name[-2:]))
            curves = sorted((p.name, p.step, p.value) for p in points if p.name != "epoch")
            found[f"{path.parent.name}/curves"] = curves
        elif path.suffix == ".csv":
            found[f"{path.parent.name}/{path.name}"] = path.read_text()
    return {name: repr(value) for name, value in found.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> dict[str, Any]:
    """The results of the run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run_smoke(folder / "run", folder, f"data.task.root={phantoms}", "data.num_workers=0", *STEPS)
    return results(folder / "run")


@pytest.fixture
def at_call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Do something at the n-th call of a step of the module; gives the calls counted so far."""

    def prepare(step: str, number: int, act: Callable[[], object]) -> list[int]:
        kind = ScoringModule if step == "predict_step" else SegmentationModule
        original, calls = getattr(kind, step), [0]

        def counted(self: SegmentationModule | ScoringModule, *args: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                act()
            return original(self, *args)

        monkeypatch.setattr(kind, step, counted)
        return calls

    return prepare


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def test_sigterm_saves_the_step_and_says_how_to_go_on(
    train: Train, at_call: Callable[..., list[int]], whole: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    before = signal.getsignal(signal.SIGTERM)
    calls = at_call("training_step", 3, send(signal.SIGTERM))
    cut = train(*STEPS, "checkpoint_every_n_steps=null")
    assert cut.exit_code == 143
    message = (
        f"alseg: interrupted by SIGTERM; continue with: python -m alseg.train resume={cut.folder}"
    )
    assert cut.err.count(message) == 1
    assert "Traceback" not in cut.err
    assert signal.getsignal(signal.SIGTERM) == before
    saved = torch.load(cut.folder / "rounds/round_01/training_best.ckpt", weights_only=True)
    assert saved["global_step"] == calls[0] == 3

    # refused before anything is computed, with what differs
    other = train("seed=2", "steps_per_round=7", resume=cut.folder, smoke=False)
    assert other.exit_code == 2
    assert re.search(r"other settings: .*\bseed: 1 -> 2", other.err)
    assert "steps_per_round: 6 -> 7" in other.err
    assert "training.schedule.total_steps: 6 -> 7" in other.err  # what follows from it

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # cache_dir is runs/cache, from where the run was started
    resumed = train("data.num_workers=1", resume=cut.folder, smoke=False)
    assert resumed.exit_code == 0, resumed.err
    assert calls[0] == 12  # 2 rounds of 6 steps: none was repeated
    assert "continuing after step 3" in resumed.out
    assert results(cut.folder) == whole
    assert not list(elsewhere.iterdir())


def test_ctrl_c_while_scoring_keeps_the_scores(
    train: Train, at_call: Callable[..., list[int]], whole: dict[str, Any]
) -> None:
    calls = at_call("predict_step", 4, send(signal.SIGINT))
    cut = train(*STEPS)
    assert cut.exit_code == 130
    assert len((cut.folder / "rounds/round_01/partial_scores_0.jsonl").read_text().split("\n")) == 4
    steps = at_call("training_step", 99, lambda: None)
    resumed = train("save_maps=true", resume=cut.folder, smoke=False)
    assert resumed.exit_code == 0, resumed.err
    assert "3 of 7 volumes were scored before the interruption" in resumed.out
    assert calls[0] == 4 + 4  # 5 candidates and 2 labelled volumes, to compare them with
    assert steps[0] == 6  # of the second round only
    assert results(cut.folder) == whole
    assert list(cut.folder.glob("rounds/round_01/maps/*"))
    assert not list(cut.folder.glob("rounds/*/partial_scores*"))


def test_a_kill_between_choosing_and_annotating_asks_for_the_same_query(
    train: Train,
    at_call: Callable[..., list[int]],
    whole: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Query] = []
    original = SimulatedOracle.annotate

    def annotate(self: SimulatedOracle, query: Query) -> Answer:
        asked.append(query)
        if len(asked) == 3:  # the initial pool, what may be read, the query of the first round
            send(signal.SIGTERM)()
        return original(self, query)

    monkeypatch.setattr(SimulatedOracle, "annotate", annotate)
    cut = train(*STEPS)
    assert cut.exit_code == 143
    assert RunState.load(cut.folder).finished_rounds == 0
    chosen = asked[-1]
    steps = at_call("training_step", 99, lambda: None)
    calls = at_call("predict_step", 99, lambda: None)
    resumed = train("save_maps=true", resume=cut.folder, smoke=False)
    assert resumed.exit_code == 0, resumed.err
    assert asked[4] == chosen  # before it, what may be read
    assert calls[0] == 0  # no volume was scored again
    assert steps[0] == 6  # of the second round only
    assert results(cut.folder) == whole
    maps = {path.name for path in cut.folder.glob("rounds/round_01/maps/*_uncertainty*")}
    assert maps == {f"{unit.case_id}_uncertainty.nii.gz" for unit in chosen}


def test_what_has_not_been_annotated_yet_is_asked_for_again(
    train: Train, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Query] = []
    original = SimulatedOracle.annotate

    def annotate(self: SimulatedOracle, query: Query) -> Answer:
        asked.append(query)
        if len(asked) == 3:  # as above
            return Answer(original(self, query[1:]).labels, pending=query[:1])
        return original(self, query)

    monkeypatch.setattr(SimulatedOracle, "annotate", annotate)
    cut = train(*STEPS)
    assert cut.exit_code == 0
    assert f"not annotated yet: {asked[-1][0].case_id}; resume the run once" in cut.out
    assert f"python -m alseg.train resume={cut.folder}" in cut.out
    resumed = train(resume=cut.folder, smoke=False)
    assert resumed.exit_code == 0, resumed.err
    assert asked[4] == asked[2]
    assert results(cut.folder) == whole


def test_a_fine_tuning_that_was_interrupted_begins_again(
    train: Train, at_call: Callable[..., list[int]]
) -> None:
    settings = (
        *STEPS, "strategy=random", "semi_supervised=pseudo_label", "pool.rounds=1",
        "semi_supervised.step_share=0.5", "data.num_workers=0",
    )  # fmt: skip
    whole = train(*settings)
    assert whole.exit_code == 0, whole.err
    calls = at_call("training_step", 5, send(signal.SIGTERM))  # 3 steps a stage
    cut = train(*settings)
    assert cut.exit_code == 143
    resumed = train(resume=cut.folder, smoke=False)
    assert resumed.exit_code == 0, resumed.err
    assert calls[0] == 5 + 3
    assert results(cut.folder) == results(whole.folder)


@pytest.mark.parametrize("gate", ["0.3", "null"])
def test_passes_end_as_without_an_interruption(
    train: Train, at_call: Callable[..., list[int]], gate: str
) -> None:
    settings = (
        *STEPS[:-2], "strategy=variance", "uncertainty.n_passes=6", "uncertainty.passes=adaptive",
        f"uncertainty.gate={gate}", "data.inferer.roi_size=[16,32,32]", "pool.query_size=1",
    )  # fmt: skip
    uninterrupted = train(*settings)
    at_call("predict_step", 4, send(signal.SIGINT))
    cut = train(*settings)
    assert cut.exit_code == 130
    resumed = train(resume=cut.folder, smoke=False)
    assert resumed.exit_code == 0, resumed.err
    assert "of 5 volumes were scored before the interruption" in resumed.out
    assert results(cut.folder) == results(uninterrupted.folder)


def test_damaged_checkpoints_are_told_and_replaced(
    train: Train, at_call: Callable[..., list[int]], whole: dict[str, Any]
) -> None:
    calls = at_call("training_step", 5, send(signal.SIGUSR1))
    cut = train(*STEPS)
    assert cut.exit_code == 138
    newest = cut.folder / "rounds/round_01/training_best.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    at_call("training_step", 3, send(signal.SIGTERM))  # steps 5, 6, and the first of round 2
    again = train(resume=cut.folder, smoke=False)
    assert again.exit_code == 143
    assert f"{newest} is damaged" in again.out
    assert "continuing after step 4" in again.out
    assert calls[0] == 5 + 3
    best = cut.folder / "rounds/round_01/best.ckpt"
    damaged = cut.folder / "rounds/round_02/training_best.ckpt"
    assert damaged.is_file()
    assert best.is_file()
    damaged.write_bytes(b"")
    end = train(resume=cut.folder, smoke=False)
    assert end.exit_code == 0, end.err
    assert f"{damaged} is damaged" in end.out
    assert results(cut.folder) == whole


def test_damaged_results_of_a_stage_are_computed_again(
    train: Train, at_call: Callable[..., list[int]], whole: dict[str, Any]
) -> None:
    at_call("test_step", 2, send(signal.SIGTERM))
    cut = train(*STEPS)
    assert cut.exit_code == 143
    best = cut.folder / "rounds/round_01/best.ckpt"
    content = bytearray(best.read_bytes())
    content[len(content) // 2] ^= 1
    best.write_bytes(content)
    resumed = train(resume=cut.folder, smoke=False)
    assert resumed.exit_code == 0, resumed.err
    assert f"{best} is damaged" in resumed.out
    assert results(cut.folder) == whole


def test_forced_settings_start_the_round_again(
    train: Train, at_call: Callable[..., list[int]]
) -> None:
    at_call("training_step", 3, send(signal.SIGTERM))
    cut = train(*STEPS)
    changed = ("steps_per_round=2", "pool.rounds=1", "resume_force=true")
    forced = train(*changed, resume=cut.folder, smoke=False)
    assert forced.exit_code == 0, forced.err
    assert "resumed with other settings: steps_per_round: 6 -> 2" in forced.out
    last = torch.load(cut.folder / "rounds/round_01/last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert train(resume=cut.folder, smoke=False).exit_code == 0  # the new settings are the run's


def test_a_folder_in_use_is_refused(train: Train, tmp_path: Path) -> None:
    with locked_run(tmp_path):
        second = train(resume=tmp_path, smoke=False)
    assert second.exit_code == 2
    assert f"is in use by process {os.getpid()} on {os.uname().nodename}" in second.err


def test_preprocessing_that_was_killed_goes_on(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alseg.engine.runs.prepare", lambda *args: send(signal.SIGTERM)())
    cut = train("pool.rounds=1", "steps_per_round=2")
    assert cut.exit_code == 143
    assert f"resume={cut.folder}" in cut.err
    monkeypatch.undo()
    assert not (cut.folder / "state.json").exists()


def test_a_non_finite_loss_stops_or_is_left_out(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SegmentationModule.training_step

    def spoiled(self: SegmentationModule, batch: dict[str, Any], index: int) -> torch.Tensor:
        loss = original(self, batch, index)
        return loss * torch.nan if self.global_step == 1 else loss

    monkeypatch.setattr(SegmentationModule, "training_step", spoiled)
    stopped = train("pool.rounds=1", "checkpoint_every_n_steps=1")
    assert stopped.exit_code == 2
    saved = torch.load(stopped.folder / "rounds/round_01/nonfinite_best.pt", weights_only=True)
    labelled = RunState.load(stopped.folder).pool.labelled
    assert set(saved["case_ids"]) <= set(labelled)
    assert f"not finite in step 2, in {', '.join(saved['case_ids'])}" in stopped.err
    assert saved["batch"]["image"].shape == (2, 1, 32, 32, 32)

    skipped = train("on_nonfinite=skip", resume=stopped.folder, smoke=False)
    assert skipped.exit_code == 0, skipped.err
    assert pd.read_csv(skipped_folder := stopped.folder / "metrics.csv")["skipped_steps"][0] == 1
    assert skipped_folder.is_file()
    last = torch.load(stopped.folder / "rounds/round_01/last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert all(torch.isfinite(v.float()).all() for v in last["state_dict"].values())
    # a step that was left out has not been seen by batch norm either
    counts = [v for k, v in last["state_dict"].items() if k.endswith("num_batches_tracked")]
    assert {int(count) for count in counts} == {3}


def test_a_disk_that_fills_up_at_any_write_loses_nothing(
    train: Train, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    """Each life of the run may write a few files more than the one before."""
    replace, room = os.replace, [0]

    def replace_while_there_is_room(*args: Any) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(*args)

    monkeypatch.setattr("alseg.system.files.os.replace", replace_while_there_is_room)
    folder: Path | None = None
    failures = 0
    for allowed in range(8, 80, 8):
        room[0] = allowed
        run = train(resume=folder, smoke=False) if folder else train(*STEPS)
        folder = folder or run.folder
        if run.exit_code == 0:
            break
        failures += 1
        assert run.exit_code == 2, run.err
        assert re.search(r"cannot write \S+: No space left on device \(\d+ MiB are free", run.err)
        assert "Traceback" not in run.err
    assert failures > 2
    assert results(folder) == whole
    assert not list(folder.rglob(".tmp-*"))


def blobs(root: Path, n_cases: int) -> Path:
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(16, 16, 16)).astype(np.float32) for _ in range(n_cases)]
    return write_msd(root, images, [(image > 1).astype(np.uint8) for image in images])


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux")
def test_memory_and_handles_stay_flat_over_20_rounds(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, int, int, int]] = []
    publish = round_loop.publish

    def measured(*args: Any) -> None:
        publish(*args)
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        n_files, n_children = (
            len(os.listdir("/proc/self/fd")),
            len(multiprocessing.active_children()),
        )
        seen.append((memory, n_files, n_children, threading.active_count()))

    monkeypatch.setattr(round_loop, "publish", measured)
    run = train(
        f"data.task.root={blobs(tmp_path / 'blobs', 40)}", "data.patch_size=[16,16,16]",
        "data.inferer.roi_size=[16,16,16]", "data.preprocess=[]", "pool.rounds=20",
        "pool.query_size=1", "pool.candidates=2", "steps_per_round=1", "val_interval=1",
        "checkpoint_every_n_steps=1", "pictures=0", "uncertainty.n_passes=1",
    )  # fmt: skip
    assert run.exit_code == 0, run.err
    assert len(seen) == 20
    memory, files, children, threads = zip(*seen, strict=True)
    assert memory[-1] - memory[4] < 40  # MiB
    assert files[-1] <= files[4]
    assert children[-1] <= children[4]
    assert threads[-1] <= threads[4]


def test_a_run_that_is_killed_ends_as_if_left_alone() -> None:
    """A short chaos run: 3 kills at random moments. ``scripts/chaos.py`` does more of them."""
    done = subprocess.run(
        [sys.executable, "scripts/chaos.py", "--kills", "3", "--variants", "features"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 differences" in done.stdout


@pytest.fixture
def handled() -> Iterator[None]:
    with interruption.handled():
        yield


def test_a_second_signal_does_not_wait(handled: None) -> None:
    def two_signals() -> None:
        with interruption.delayed():
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.requested == signal.SIGTERM
            time.sleep(AT_ONCE_S)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as stop:
        two_signals()
    assert stop.value.exit_code == 130


def test_signals_that_a_scheduler_sends_at_once_count_as_one(handled: None) -> None:
    done = []

    def two_at_once() -> None:
        with interruption.delayed():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR2)
            done.append(True)

    with pytest.raises(Interrupted) as stop:
        two_at_once()
    assert done
    assert stop.value.exit_code == 143


def test_a_signal_that_waited_is_not_forgotten(handled: None) -> None:
    done = []

    def one_signal() -> None:
        with interruption.delayed():
            os.kill(os.getpid(), signal.SIGUSR1)
            done.append(True)

    with pytest.raises(Interrupted):
        one_signal()
    assert done


def test_all_random_states_are_put_back(tmp_path: Path) -> None:
    import random

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(1))]

    np.random.standard_normal()  # leaves a second number waiting
    torch.save(random_state(), tmp_path / "state.pt")
    expected = draw()
    restore_random_state([torch.load(tmp_path / "state.pt", weights_only=True)])
    assert draw() == expected
