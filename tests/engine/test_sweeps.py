"""Sweeps by running the command: parallel, with failing jobs, killed and resumed."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import joblib
import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from rich.console import Console

from alseg.config.command_line import job_hash
from alseg.config.composition import composed, conf_folder
from alseg.config.settings import config_hash
from alseg.core.errors import ConfigError
from alseg.engine import sweeps
from alseg.engine.sweeps import (
    Job,
    JobRow,
    Work,
    job_rows,
    latest_sweep,
    note_lost,
    print_sweep,
    print_tables,
    run_job,
    sweep_folder,
)
from alseg.run.lock import locked_run
from alseg.run.state import RunState
from alseg.system.interruption import Interrupted
from alseg.train import explain_sweep_resume
from tests.waiting import wait_for

JOBS = ("experiment=smoke", "trainer=cpu", "steps_per_round=1", "val_interval=1", "pictures=0")


def sweep(output_dir: Path, *overrides: str, **settings: Any) -> subprocess.Popen[str]:
    """Start ``python -m alseg.train -m`` with short jobs."""
    command = [sys.executable, "-m", "alseg.train", "-m", *JOBS, f"output_dir={output_dir}"]
    return subprocess.Popen(
        [*command, *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **settings,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and the output of a sweep that ends by itself."""
    try:
        output, _ = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def without_threads() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


def job_folders(sweep_folder: Path) -> dict[str, Path]:
    """The job folders by strategy and seed; they have the hash of the overrides behind that."""
    return {
        path.parent.name.rpartition("_")[0]: path.parent
        for path in sorted(sweep_folder.glob("*/job.json"))
    }


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A joblib sweep into a fresh store, in which half of the jobs must fail."""
    output_dir = tmp_path_factory.mktemp("parallel")
    jobs = ("strategy=random,variance", "pool.initial=2,99", "hydra.sweep.dir=" + str(output_dir))
    # of no package that a run folder may name: the jobs, which resume theirs, build it all the same
    own = "+trainer.callbacks=[{_target_: pytorch_lightning.Callback}]"
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    return output_dir, *ended(sweep(output_dir, *jobs, own, *launcher, env=without_threads()))


def test_failing_jobs_are_reported_and_stop_no_other(parallel: tuple[Path, int, str]) -> None:
    output_dir, exit_code, output = parallel
    assert exit_code == 1, output
    assert "2 of 4 jobs finished" in output
    jobs = [(path.parent, Job.load(path.parent)) for path in output_dir.glob("*/job.json")]
    finished = [folder for folder, job in jobs if job.status == "finished"]
    failed = [folder for folder, job in jobs if job.status == "failed"]
    assert (len(finished), len(failed)) == (2, 2)
    reason = "pool.initial is 99, but the training split has 7 volumes"
    assert [Job.load(folder).reason for folder in failed] == [reason, reason]
    assert output.count(f"{reason}\n") >= 2  # in the summary, behind the folder
    assert not any((folder / "state.json").exists() for folder in failed)
    assert {len(RunState.load(folder).history) for folder in finished} == {2}

    client = MlflowClient(f"sqlite:///{output_dir}/mlflow.db")
    experiment = client.get_experiment_by_name("smoke")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert "RUNNING" not in {run.info.status for run in runs}
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert sorted(
        (run.data.tags["strategy"], run.info.status, run.data.tags.get("failure"))
        for run in parents
    ) == [
        ("random", "FAILED", reason),
        ("random", "FINISHED", None),
        ("variance", "FAILED", reason),
        ("variance", "FINISHED", None),
    ]


def test_the_threads_are_divided_among_parallel_jobs(parallel: tuple[Path, int, str]) -> None:
    share = max(1, joblib.cpu_count() // 2)
    assert parallel[2].count(f"job on {share} thread") == 4


def test_a_killed_sweep_resumes_to_the_same_result(
    parallel: tuple[Path, int, str], tmp_path: Path
) -> None:
    jobs = ("strategy=random,variance", "pool.initial=2", "tracking=none")
    # As many threads as each of the parallel jobs had: sums depend on it in the last digits.
    threads = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}
    killed = sweep(tmp_path, *jobs, env=threads)
    (second,) = wait_for(lambda: list(tmp_path.glob("smoke/sweep_*/variance_*/state.json")))
    wait_for(lambda: RunState.load(second.parent).finished_rounds)
    killed.send_signal(signal.SIGKILL)  # only the sweep: its job must not continue without it
    killed.communicate(timeout=300)
    wait_for(lambda: is_free(second.parent))
    first = job_folders(second.parent.parent)["random_seed1"]
    log_before = (first / "job.log").read_text()

    exit_code, output = ended(sweep(tmp_path, *jobs, "sweep.resume=true", env=threads))
    assert exit_code == 0, output
    assert "[random seed 1] finished before, not run again" in output
    assert (first / "job.log").read_text() == log_before
    assert len(list((tmp_path / "smoke").iterdir())) == 1
    resumed = job_folders(first.parent)
    assert sorted(resumed) == ["random_seed1", "variance_seed1"]
    for folder in parallel[0].glob("*/job.json"):
        if Job.load(folder.parent).status == "finished":
            same = resumed[folder.parent.name.rpartition("_")[0]]
            assert result(same) == result(folder.parent)


def result(folder: Path) -> tuple[object, ...]:
    """What a run computed, without how long it took and where it was tracked."""
    state = RunState.load(folder)
    return state.pool, state.history, state.queries, state.finished_rounds


def is_free(folder: Path) -> bool:
    """Whether no process holds the run folder."""
    try:
        with locked_run(folder):
            return True
    except ConfigError:
        return False


def test_submitit_runs_jobs(tmp_path: Path) -> None:
    jobs = ("strategy=full", "tracking=none", "hydra/launcher=submitit_local")
    threads = "hydra.launcher.cpus_per_task=1"
    exit_code, output = ended(sweep(tmp_path, *jobs, threads, env=without_threads()))
    assert exit_code == 0, output
    assert "1 of 1 jobs finished" in output
    (log,) = tmp_path.glob("smoke/sweep_*/full_seed1_*/job.log")
    assert "job on 1 thread" in log.read_text()


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local", "slurm", "ray"])
def test_every_launcher_composes(launcher: str) -> None:
    config = composed(settings(Path("runs"), f"hydra/launcher={launcher}"))
    assert config.strategy.name == "variance"


# --- jobs in this process ---------------------------------------------------------------------


def settings(output_dir: Path, *overrides: str) -> list[str]:
    """The overrides of a job."""
    return [*JOBS, "tracking=none", f"output_dir={output_dir}", *overrides]


def killed(own: Sequence[str], folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crashed(own: Sequence[str], folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def refused(own: Sequence[str], folder: Path) -> None:
    print("alseg: error: data.root is x", file=sys.stderr)
    sys.exit(2)


def raised(own: Sequence[str], folder: Path) -> None:
    raise ValueError("no")


def silent(own: Sequence[str], folder: Path) -> None:
    sys.exit(7)


def run(
    output_dir: Path,
    folder: Path,
    *overrides: str,
    work: Work = silent,
    number: int | None = None,
) -> float:
    """Run a job of these overrides in a folder."""
    given = settings(output_dir, *overrides)
    return run_job(composed(given), folder, given, work, number=number)


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (killed, r"the process was killed by SIGKILL (out of memory?)"),
        (crashed, r"the process was killed by SIGSEGV"),
        (refused, "data.root is x"),
        (raised, "ValueError: no"),
        (silent, "exit code 7"),
    ],
)
def test_a_job_that_dies_is_failed(tmp_path: Path, work: Work, reason: str) -> None:
    folder = tmp_path / "sweep" / "job"
    folder.mkdir(parents=True)
    assert math.isnan(run(tmp_path, folder, work=work))
    job = Job.load(folder)
    assert (job.status, job.reason) == ("failed", reason)
    assert not print_sweep(folder.parent)


def test_a_job_that_only_the_resumption_has_started_is_of_the_same_strategy(
    tmp_path: Path,
) -> None:
    for name, more in (("a", ()), ("b", ("sweep.resume=true",))):
        folder = tmp_path / "sweep" / name
        folder.mkdir(parents=True)
        run(tmp_path, folder, f"seed={len(name) + len(more)}", "strategy=random", *more)
    rows = job_rows(tmp_path / "sweep").values()
    assert [(row.strategy, row.seed, row.settings) for row in rows] == [
        ("random", "1", ""),
        ("random", "2", ""),
    ]


def test_ctrl_c_in_a_sweep_says_how_to_continue_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "-m", "seed=1,2", "data.root='a b'"])
    with pytest.raises(Interrupted) as stopped, explain_sweep_resume():
        raise KeyboardInterrupt
    assert stopped.value.exit_code == 130
    assert shlex.split(stopped.value.resume) == [*sys.argv[1:], "sweep.resume=true"]
    monkeypatch.setattr(sys, "argv", ["train", "seed=1"])
    with pytest.raises(KeyboardInterrupt), explain_sweep_resume():
        raise KeyboardInterrupt


LONG_NAME = "a_rather_long_name_of_a_strategy_of_my_own"
SETTINGS = "data.spacing_mm=[1,1,1] model=unet_small training.learning_rate=0.00{}"


@pytest.mark.parametrize("name", ["random", LONG_NAME])
@pytest.mark.parametrize("settings", ["", SETTINGS])
def test_tables_of_long_names_are_readable_in_80_columns(
    name: str, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Console(width=80, file=StringIO())
    monkeypatch.setattr("alseg.system.console.console", lambda: terminal)
    monkeypatch.setattr(sweeps, "console", lambda: terminal)
    jobs = [
        JobRow(name, settings.format(number), "12345", Job(status, "", 123456), 12, 0.5, 0.625)
        for number, status in enumerate(("unfinished", "finished"), start=1)
    ]
    print_tables(jobs)
    text = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    for cell in ("strategy", "test Dice", "12345", "unfinished", "34 h 17 min", "0.625", name):
        assert cell in text  # in one piece
    for number in (1, 2):
        assert settings.format(number) in text
    assert max(map(len, (line for line in text.splitlines() if line[0] in "┃│"))) <= 80


def test_several_devices_are_refused_with_the_right_command(tmp_path: Path) -> None:
    assert math.isnan(run(tmp_path, tmp_path, "trainer=ddp"))
    reason = Job.load(tmp_path).reason
    assert "one device each" in reason
    assert "torchrun --nproc-per-node 2 -m alseg.train experiment=smoke trainer=cpu" in reason


def test_the_printed_torchrun_command_can_be_pasted(tmp_path: Path) -> None:
    place = "output_dir='/my runs/$HOME'"
    run(tmp_path, tmp_path, "trainer=ddp", place)
    command = Job.load(tmp_path).reason.rpartition("run each job by itself: ")[2]
    assert place in shlex.split(command)


def test_a_job_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    run(tmp_path, folder)
    run(tmp_path, folder, "sweep.resume=true", "seed=2")
    assert "holds a run with other settings" in Job.load(folder).reason


def saves_when_asked(own: Sequence[str], folder: Path) -> None:
    def save(number: int, frame: FrameType | None) -> None:
        time.sleep(0.5)
        (folder / "saved").touch()
        sys.exit(128 + number)

    signal.signal(signal.SIGUSR2, save)
    (folder / "ready").touch()
    time.sleep(60)


def test_a_signal_of_a_scheduler_is_acted_on_when_the_job_has_saved(tmp_path: Path) -> None:
    found: list[bool] = []
    mine = signal.signal(
        signal.SIGUSR2, lambda number, frame: found.append((tmp_path / "saved").exists())
    )

    def send() -> None:
        wait_for((tmp_path / "ready").exists, 60)
        os.kill(os.getpid(), signal.SIGUSR2)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(Interrupted) as stopped:
            run(tmp_path, tmp_path, work=saves_when_asked)
    finally:
        sender.join()
        signal.signal(signal.SIGUSR2, mine)
    assert found == [True]
    assert stopped.value.exit_code == 140
    assert Job.load(tmp_path).status == "unfinished"


def prints_as_it_saves(folder: Path) -> None:
    def save(number: int, frame: FrameType | None) -> None:
        print("stopping after this step", flush=True)
        (folder / "saved").touch()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, save)
    (folder / "ready").touch()
    time.sleep(60)


def test_a_job_whose_sweep_was_killed_saves_though_nobody_reads_its_output(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from alseg.engine.jobs import run_in_fork\n"
        "from tests.engine.test_sweeps import prints_as_it_saves\n"
        f"run_in_fork(prints_as_it_saves, Path({str(tmp_path)!r}), print)"
    )
    sweep = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    wait_for((tmp_path / "ready").exists, 200)
    sweep.kill()
    sweep.wait()
    wait_for((tmp_path / "saved").exists, 20)


def interrupted(own: Sequence[str], folder: Path) -> None:
    print("alseg: interrupted by SIGTERM; continue with: ...", file=sys.stderr)
    sys.exit(143)


def test_the_lines_of_a_job_name_its_data_set_where_the_command_does(tmp_path: Path) -> None:
    def name(*overrides: str) -> str:
        given = settings(tmp_path, "strategy=random", "seed=7")
        return sweeps.job_name(composed(given), overrides)

    assert name("strategy=random", "seed=7") == "random seed 7"
    assert name("data=auto_acdc", "seed=7") == "auto_acdc random seed 7"
    assert name("data=auto", "data.root='/my data/Heart = 3D'") == "auto Heart = 3D random seed 7"


def test_an_interrupted_job_has_not_failed(tmp_path: Path) -> None:
    run(tmp_path, tmp_path, work=interrupted)
    job = Job.load(tmp_path)
    assert (job.status, job.reason.partition(";")[0]) == (
        "unfinished",
        "alseg: interrupted by SIGTERM",
    )


def test_a_job_that_its_scheduler_starts_again_runs_again(tmp_path: Path) -> None:
    run(tmp_path, tmp_path, work=killed, number=3)
    run(tmp_path, tmp_path, work=silent, number=4)  # the same job twice in one sweep
    assert "killed by SIGKILL" in Job.load(tmp_path).reason
    run(tmp_path, tmp_path, work=silent, number=3)
    assert Job.load(tmp_path).reason == "exit code 7"


def test_a_job_that_is_started_again_waits_for_its_earlier_process(tmp_path: Path) -> None:
    run(tmp_path, tmp_path, work=killed, number=3)
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with locked_run(tmp_path):
            held.set()
            free.wait(30)

    earlier = threading.Thread(target=hold)
    earlier.start()
    held.wait(30)
    threading.Timer(1, free.set).start()
    run(tmp_path, tmp_path, work=silent, number=3)
    earlier.join()
    assert Job.load(tmp_path).reason == "exit code 7"


def test_a_job_that_got_lost_before_it_started_is_in_the_tables(tmp_path: Path) -> None:
    given = settings(tmp_path, "strategy=random", "seed=7")
    note_lost(composed(given), tmp_path / "sweep" / "job", given, "its node has failed")
    (row,) = job_rows(tmp_path / "sweep").values()
    assert (row.strategy, row.seed) == ("random", "7")
    assert (row.job.status, row.job.reason) == ("failed", "its node has failed")
    assert not print_sweep(tmp_path / "sweep")


def test_a_job_whose_data_cannot_be_planned_has_its_strategy_in_the_tables(tmp_path: Path) -> None:
    folder, root = tmp_path / "sweep" / "job", tmp_path / "data"
    folder.mkdir(parents=True)
    root.mkdir()
    run(tmp_path, folder, "data=auto", f"data.root={root}", "strategy=entropy", "seed=7")
    assert not (folder / "config.yaml").exists()
    (row,) = job_rows(tmp_path / "sweep").values()
    assert (row.strategy, row.seed, row.job.status) == ("entropy", "7", "failed")


def test_a_finished_job_is_not_lost(tmp_path: Path) -> None:
    Job("finished").save(tmp_path)
    note_lost(composed(settings(tmp_path)), tmp_path, settings(tmp_path), "its node has failed")
    assert Job.load(tmp_path).status == "finished"


def test_a_job_that_is_still_running_is_left_alone(tmp_path: Path) -> None:
    with locked_run(tmp_path):
        assert math.isnan(run(tmp_path, tmp_path, "sweep.resume=true"))
    assert Job.load(tmp_path).status == "unfinished"


def test_resuming_is_not_a_setting_of_the_experiment(tmp_path: Path) -> None:
    def hashed(*overrides: str) -> str:
        return config_hash(composed(settings(tmp_path, *overrides)))

    assert hashed() == hashed("sweep.resume=true", "resume=x")
    assert hashed() != hashed("seed=2")


def test_a_job_finds_its_folder_again() -> None:
    assert job_hash(["a=1", "b=2"]) == job_hash(["b=2", "sweep.resume=true", "a=1"])
    assert job_hash(["a=1", "b=2"]) != job_hash(["a=1", "b=3"])


def multirun(folder: Path, *overrides: str) -> Path:
    folder.mkdir(parents=True)
    content = {"hydra": {"overrides": {"task": list(overrides)}}}
    (folder / "multirun.yaml").write_text(json.dumps(content))  # JSON is YAML
    return folder


def test_the_latest_sweep_of_the_same_command_is_resumed(tmp_path: Path) -> None:
    multirun(tmp_path / "sweep_1", "seed=1,2")
    expected = multirun(tmp_path / "sweep_2", "seed=1,2", "sweep.resume=true")
    multirun(tmp_path / "sweep_3", "seed=1,2,3")
    assert latest_sweep(tmp_path, ["sweep.resume=true", "seed=1,2"]) == expected
    with pytest.raises(ConfigError, match="no sweep with these settings"):
        latest_sweep(tmp_path, ["seed=7"])


def test_a_finished_sweep_is_not_started_again(tmp_path: Path) -> None:
    folder = multirun(tmp_path / "s")
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        config = compose("config", [f"hydra.sweep.dir={folder}"], return_hydra_config=True)
    with pytest.raises(ConfigError, match=r"continue it with sweep.resume=true"):
        sweep_folder(config)
