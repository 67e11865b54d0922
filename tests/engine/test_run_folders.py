"""Each run has a folder of its own, however many start at one moment."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from importlib import import_module
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from alseg.config.command_line import override
from alseg.config.composition import composed
from alseg.config.settings import load_start
from alseg.core.errors import ConfigError
from alseg.engine.runs import claim, release_claim, train
from alseg.run.folder import CONFIG_FILE, OWNER_FILE, STATE_FILE
from alseg.run.lock import locked_run
from alseg.run.state import RunState
from tests.smoke_runs import run_smoke

N_RUNS = 6


def claim_and_note(folder: Path, number: int, start: Barrier) -> None:
    start.wait()
    (claim(folder) / f"run_{number}").touch()


def test_runs_that_start_at_one_moment_get_folders_of_their_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(N_RUNS)
    folder = tmp_path / "runs" / "2026-11-23_10-00-00_variance_seed1"
    runs = [
        context.Process(target=claim_and_note, args=(folder, number, start))
        for number in range(N_RUNS)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(300)
    claimed = {path.parent.name: path.name for path in folder.parent.glob("*/run_*")}
    assert sorted(claimed) == [folder.name, *(f"{folder.name}_{n}" for n in range(2, N_RUNS + 1))]
    assert sorted(claimed.values()) == [f"run_{number}" for number in range(N_RUNS)]


def test_a_folder_whose_run_has_ended_is_not_replaced_by_another(tmp_path: Path) -> None:
    for name in (STATE_FILE, CONFIG_FILE):
        folder = claim(tmp_path / name)
        (folder / name).touch()
        assert claim(folder) == folder  # for the caller to say that it can be resumed
        with locked_run(folder):
            assert claim(folder).name == f"{name}_2"


def test_the_folder_of_a_process_that_died_before_its_run_started_is_used_again(
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("fork")
    dying = context.Process(target=claim, args=(tmp_path / "a",))
    dying.start()
    dying.join(300)
    assert (tmp_path / "a" / OWNER_FILE).is_file()
    assert claim(tmp_path / "a").name == "a"
    assert claim(tmp_path / "a").name == "a_2"  # this process is alive


def test_a_claim_is_given_up_with_a_run_that_has_not_started(tmp_path: Path) -> None:
    given_up, started = claim(tmp_path / "a"), claim(tmp_path / "b")
    (started / CONFIG_FILE).touch()
    for folder in (given_up, started):
        release_claim(folder)
    assert claim(given_up) == given_up
    assert len(list(started.iterdir())) == 3  # lock, owner and configuration


def test_a_folder_is_what_its_name_says_whatever_it_is_called(
    tmp_path: Path,
    phantoms: Path,
    monkeypatch: pytest.MonkeyPatch,
    call_entry_point: Callable[..., tuple[int, str, str]],
) -> None:
    monkeypatch.chdir(tmp_path)
    output, data = tmp_path / "a ${x} b, c='d' ${now:%Y}", tmp_path / "${seed}"
    data.symlink_to(phantoms)
    settings = (
        "experiment=smoke", "trainer=cpu", "steps_per_round=1", "val_interval=1", "pictures=0",
        "pool.rounds=1", "uncertainty.n_passes=1", override("output_dir", output),
    )  # fmt: skip

    def call(module: str, *arguments: str) -> str:
        main = import_module(f"alseg.{module}").main
        exit_code, out, err = call_entry_point(main, *arguments)
        assert exit_code == 0, out + err
        return out

    call("train", *settings, override("data.task.root", data))
    (run,) = (output / "smoke").iterdir()
    assert (load_start(run).overrides or ())[-1] == override("data.task.root", data)
    call("train", override("resume", run), "pictures=1")  # composed anew, from start.json
    assert RunState.load(run).finished_rounds == 1
    jobs = (*settings, override("data.task.root", data), "strategy=random", "tracking=none")
    for more in ((), ("sweep.resume=true",)):
        assert "1 of 1 jobs finished" in call("train", "-m", *jobs, *more)
    assert len(list((output / "smoke").iterdir())) == 2
    assert "random" in call("compare", str(output), "--output", str(output / "page"))
    assert {path.name for path in tmp_path.iterdir()} == {output.name, data.name}


def test_a_run_of_an_earlier_version_is_told(shared: Path, tmp_path: Path) -> None:
    run_smoke(tmp_path, shared, "strategy=random", "pool.rounds=1")
    path = tmp_path / CONFIG_FILE
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("round_start:")))
    with pytest.raises(ConfigError) as caught:
        train(composed([override("resume", tmp_path)]), tmp_path)
    assert str(caught.value) == (
        f"{path} was made by an earlier version of alseg: it lacks round_start; continue with that "
        "version, which provenance.json beside it names, or start the run again"
    )
    path.write_text("".join(lines) + "scoring:\n  n_passes: 10\n  gate: null\n")
    with pytest.raises(ConfigError) as caught:
        train(composed([override("resume", tmp_path)]), tmp_path)
    assert str(caught.value) == (
        f"{path} was made by an earlier version of alseg: scoring.n_passes is now "
        "uncertainty.n_passes, scoring.gate is now uncertainty.gate; continue with that version, "
        "which provenance.json beside it names, or start the run again"
    )
    path.write_text("".join(lines).replace("selectors.noisy.random", "selectors.random"))
    with pytest.raises(
        ConfigError, match=r"was made by an earlier version of alseg: strategy\.sel"
    ):
        train(composed([override("resume", tmp_path)]), tmp_path)
