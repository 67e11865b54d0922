"""Sweeps on a real Slurm (``scripts/local_slurm.sh``), whose jobs are disturbed in every way."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from alseg.engine.sweeps import Job, JobRow, job_rows
from alseg.run.state import RunState
from tests.waiting import wait_for


def answers() -> bool:
    """Whether there is a Slurm with a node that takes jobs."""
    if shutil.which("sinfo") is None:
        return False
    asked = ["sinfo", "--noheader", "--format=%T"]
    states = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    return states.returncode == 0 and bool(re.search("idle|mixed|allocated", states.stdout))


pytestmark = pytest.mark.skipif(
    not answers(), reason="no Slurm answers: scripts/local_slurm.sh, and set SLURM_CONF"
)

JOBS = (
    "experiment=smoke", "trainer=cpu", "steps_per_round=150", "val_interval=30", "pictures=0",
    "tracking=none", "strategy=random,variance", "seed=1,2",
)  # fmt: skip
SLURM = (
    "hydra/launcher=slurm", "hydra.launcher.mem_gb=2", "hydra.launcher.poll_s=2",
    "hydra.launcher.array_parallelism=2", "hydra.launcher.signal_delay_s=40",
    "hydra.launcher.timeout_min=9", "hydra.launcher.name=alseg-test",
)  # fmt: skip


def slurm(*command: str) -> str:
    """What a command of Slurm prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def state_of(job: str) -> str:
    return slurm("squeue", "--array", "--noheader", "--states=all", f"--job={job}", "--format=%T")


def sweep_command(output_dir: Path, folder: Path, *overrides: str) -> list[str]:
    places = (f"output_dir={output_dir}", f"hydra.sweep.dir={folder}")
    return [sys.executable, "-m", "alseg.train", "-m", *JOBS, *places, *overrides]


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}  # as many as each job on Slurm has


@dataclass
class Sweep:
    """A sweep on Slurm that is under way: its command, its folder and its array."""

    process: subprocess.Popen[str]
    folder: Path
    array: str

    def job(self, index: int) -> str:
        return f"{self.array}_{index}"

    def log(self, index: int) -> str:
        """What a job, its earlier attempts included, has printed so far."""
        path = self.folder / ".submitit" / self.job(index) / f"{self.job(index)}_0_log.out"
        return path.read_text() if path.is_file() else ""

    def wait_for_training(self, index: int) -> None:
        """Until a job trains, after its start or its restart."""
        before = self.log(index).count("step ")

        def trains() -> bool:
            assert self.process.poll() is None
            return self.log(index).count("step ") > before

        wait_for(trains, 300, f"job {index} does not train: {self.log(index)}")

    def wait_for_requeue(self, index: int) -> None:
        wait_for(lambda: state_of(self.job(index)) == "PENDING", 90, f"job {index} is not queued")


def started(output_dir: Path, folder: Path, log: Path) -> Sweep:
    """Start a sweep of 2 strategies x 2 seeds on Slurm; the last job has too little memory."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            sweep_command(output_dir, folder, *SLURM), stdout=file, stderr=file, text=True,
            env=one_thread(),
        )  # fmt: skip

    def array() -> re.Match[str] | None:
        return re.search(r"queue, from (\d+)_0", log.read_text(encoding="utf-8"))

    found = wait_for(array, 120, "no array")
    return Sweep(process, folder, found[1])


def preempt(sweep: Sweep, indices: tuple[int, int]) -> int:
    """Have an urgent job preempt one of two jobs that run; returns which."""
    slurm("sbatch", "--partition=urgent", "--output=/dev/null", "--mem=10M", "--wrap=sleep 1")
    waiting = lambda: [i for i in indices if state_of(sweep.job(i)) == "PENDING"]  # noqa: E731
    return wait_for(waiting, 90, "no job was preempted")[0]


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sweep, int, str]]:
    """A sweep in which a job is preempted, one requeued, one timed out, one out of memory."""
    output_dir = tmp_path_factory.mktemp("slurm")
    log = output_dir / "sweep.log"
    sweep = started(output_dir, output_dir / "sweep", log)
    try:
        slurm("scontrol", "update", f"JobId={sweep.job(3)}", "MinMemoryNode=150")
        for index in (0, 1):
            sweep.wait_for_training(index)
        other = 1 - preempt(sweep, (0, 1))
        slurm("scontrol", "requeue", sweep.job(other))
        sweep.wait_for_training(2)
        # the limit is a minute in all, of which the last 40 seconds are for saving
        slurm("scontrol", "update", f"JobId={sweep.job(2)}", "TimeLimit=1")
        sweep.wait_for_requeue(2)
        slurm("scontrol", "update", f"JobId={sweep.job(2)}", "TimeLimit=60")
        exit_code = sweep.process.wait(timeout=600)
        yield sweep, exit_code, log.read_text()
    finally:
        subprocess.run(["scancel", "--name=alseg-test"], check=False)
        sweep.process.kill()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep, one job after the other in this machine's own processes."""
    output_dir = tmp_path_factory.mktemp("plain")
    command = sweep_command(output_dir, output_dir / "sweep")
    subprocess.run(command, check=True, capture_output=True, env=one_thread(), timeout=600)
    return output_dir / "sweep"


def by_name(folder: Path) -> dict[str, Path]:
    """The folders of a sweep's jobs by strategy and seed, without the hash behind them."""
    return {name.rpartition("_")[0]: folder / name for name in job_rows(folder)}


def row(job: JobRow) -> tuple[object, ...]:
    """What the tables show of a job, without how long it took."""
    return job.strategy, job.seed, job.job.status, job.rounds, job.dice, job.area


def test_jobs_continue_or_are_reported(disturbed: tuple[Sweep, int, str]) -> None:
    sweep, exit_code, output = disturbed
    assert exit_code == 1, output
    assert "3 of 4 jobs finished" in output
    for index in range(3):
        assert sweep.log(index).count("Starting with JobEnvironment") == 2, sweep.log(index)
    logs = [sweep.log(index) for index in range(3)]
    assert "this job is timed-out" in logs[2]
    assert sum("Bypassing signal SIGTERM" in log for log in logs) >= 1
    # a warning in the log, and why it is not finished in the summary
    assert (
        len(re.findall(f"Slurm's job {sweep.job(3)} is .*: it has used more memory", output)) == 2
    )


def test_a_job_that_is_asked_to_end_repeats_nothing_of_its_training(
    disturbed: tuple[Sweep, int, str],
) -> None:
    sweep, _, _ = disturbed
    for index in range(3):
        validated = re.findall(r"round \d/2 .* step \d+/150 .* val Dice", sweep.log(index))
        assert len(validated) == len(set(validated)) == 2 * 5, sweep.log(index)


def test_the_resumed_sweep_has_the_tables_of_an_undisturbed_one(
    disturbed: tuple[Sweep, int, str], undisturbed: Path
) -> None:
    folder = disturbed[0].folder
    resumed = sweep_command(folder.parent, folder, *SLURM, "sweep.resume=true")
    done = subprocess.run(
        resumed, capture_output=True, text=True, env=one_thread(), timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 jobs finished" in done.stdout
    jobs, expected = by_name(folder), by_name(undisturbed)
    assert sorted(jobs) == sorted(expected)
    assert [row(job) for job in job_rows(folder).values()] == [
        row(job) for job in job_rows(undisturbed).values()
    ]
    for name, path in jobs.items():
        assert Job.load(path).status == "finished"
        one, two = RunState.load(path), RunState.load(expected[name])
        assert (one.pool, one.history, one.queries) == (two.pool, two.history, two.queries)


def test_what_slurm_refuses_is_said_in_a_sentence(tmp_path: Path) -> None:
    wrong = (*SLURM, "hydra.launcher.partition=nowhere")
    done = subprocess.run(
        sweep_command(tmp_path, tmp_path / "sweep", *wrong),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "alseg: error: Slurm takes no jobs:" in done.stderr
    assert "invalid partition specified: nowhere" in done.stderr
    assert "Traceback" not in done.stderr
