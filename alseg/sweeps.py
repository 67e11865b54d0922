"""Sweeps: every job in a process and a folder of its own, and a summary at the end.

Hydra's launchers say when and where a job starts; the job itself is a child process. A job that
runs out of memory or crashes in native code then ends itself and no other, whatever the launcher,
and each job gets its share of the threads and gives back all its memory. It costs the seconds that
Python needs to import torch.

Rejected: the job inside the launcher's worker. One killed worker makes joblib throw away all jobs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from rich.console import Console
from rich.table import Table

from alseg.cli import part, print_error, sentence
from alseg.errors import AlsegError, ConfigError
from alseg.evaluation import area_under_budget_curve
from alseg.files import write_atomically
from alseg.isolation import exit_in_words
from alseg.settings import CONFIG_FILE, config_hash, flat, load_config, save_config, save_start
from alseg.state import RunState, hold
from alseg.trainers import n_devices

log = logging.getLogger(__name__)

JOB_FILE, LOG_FILE = "job.json", "job.log"
SWEEP_FILE = "multirun.yaml"  # Hydra's
FINISHED, FAILED, UNFINISHED = "finished", "failed", "unfinished"


@dataclass(frozen=True)
class Job:
    """How a job has ended: job.json in its folder.

    Attributes:
        status: finished or failed; unfinished if there is no job.json.
        reason: why it failed.
        seconds: how long it took.
    """

    status: str
    reason: str = ""
    seconds: float = 0.0

    def save(self, folder: Path) -> None:
        """Write job.json."""
        write_atomically(folder / JOB_FILE, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Read job.json."""
        path = folder / JOB_FILE
        return cls(**json.loads(path.read_text())) if path.is_file() else cls(UNFINISHED)


def run_job(config: DictConfig, folder: Path) -> float:
    """Run one job of a sweep to its end, in a child process.

    Never raises for what goes wrong in the job: it is recorded as failed, and the other jobs run.

    Args:
        config: the job's composed configuration.
        folder: the job's folder.

    Returns:
        The area under the budget curve of the validation Dice; NaN if the job failed.
    """
    name = f"{config.strategy.name} seed {config.seed}"
    if (folder / CONFIG_FILE).exists() and not config.sweep.resume:
        log.warning(f"[{name}] is in this sweep twice, and run once")
        return math.nan
    try:
        with hold(folder):
            pass
    except ConfigError as error:  # a job that an earlier sweep has left running: hands off
        log.error(f"[{name}] {error}")
        return math.nan
    started = time.monotonic()
    try:
        check_job(config, folder)
        if Job.load(folder).status == FINISHED:
            log.info(f"[{name}] finished before, not run again")
            return validation_area(folder)
        (folder / JOB_FILE).unlink(missing_ok=True)
        reason = _run_child(folder, name)
    except Exception as error:  # the boundary of a job: whatever it is, it is reported
        reason = sentence(error)
    seconds = round(time.monotonic() - started, 1)
    if not reason:
        Job(FINISHED, seconds=seconds).save(folder)
        return validation_area(folder)
    Job(FAILED, reason, seconds).save(folder)
    log.error(f"[{name}] failed: {reason}")
    _track_failure(config, folder, reason)
    return math.nan


def check_job(config: DictConfig, folder: Path) -> None:
    """Check that a job can run in its folder, and write its configuration there.

    Raises:
        ConfigError: if it needs several devices, or the folder holds a run of other settings.
    """
    devices = n_devices(config.trainer)
    if devices > 1:
        command = " ".join(HydraConfig.get().overrides.task)
        raise ConfigError(
            f"a sweep runs its jobs on one device each, but trainer.devices gives {devices}: the "
            "launcher cannot start the other processes of a job; run each job by itself: "
            f"torchrun --nproc-per-node {devices} -m alseg.train {command}"
        )
    if not (folder / CONFIG_FILE).exists():
        save_start(folder, HydraConfig.get().overrides.task)
        save_config(config, folder)
    elif config_hash(load_config(folder)) != config_hash(config):
        raise ConfigError(
            f"{folder} holds a run with other settings; start the sweep in another hydra.sweep.dir"
        )


def validation_area(folder: Path) -> float:
    """Area under the budget curve of the validation Dice of the run in a folder."""
    return area_under_budget_curve(*RunState.load(folder).learning_curve("val_dice"))


def _run_child(folder: Path, name: str) -> str:
    """Run the job in a child process, passing on its output; returns why it failed, or ''."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    # joblib gives its workers their share of the cores by itself (OMP_NUM_THREADS).
    if threads := HydraConfig.get().launcher.get("cpus_per_task"):
        environment["OMP_NUM_THREADS"] = str(threads)
    last = ""
    with (
        (folder / LOG_FILE).open("a") as file,
        subprocess.Popen(
            [sys.executable, "-m", "alseg.sweeps", str(folder)],
            env=environment,
            stdin=subprocess.PIPE,  # closes when this process ends: see _end_with_parent
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            file.write(line)
            file.flush()
            if line.strip():
                print(f"[{name}] {line}", end="", flush=True)
                last = line.strip()
    if child.returncode == 0:
        return ""
    if child.returncode < 0:
        return f"the process {exit_in_words(child.returncode)}"
    return last.removeprefix("alseg: error: ") or f"exit code {child.returncode}"


def _track_failure(config: DictConfig, folder: Path, reason: str) -> None:
    """Mark the job's run in the tracking store as failed; makes one if it had not come to that."""
    try:
        state = RunState.load(folder) if RunState.is_in(folder) else None
        tracker = part(config.tracking)
        tracker.open(
            folder,
            state.tracking_run_id if state else None,
            flat(OmegaConf.to_container(config, resolve=True)),
            {"strategy": str(config.strategy.name), "seed": str(config.seed)},
        )
        tracker.close("FAILED", reason)
    except Exception as error:  # the failure itself has been recorded: only say it
        log.error(f"the failure could not be tracked: {sentence(error)}")


class SweepCallback(Callback):
    """Finds the folder of a sweep before its jobs start, and sums up the jobs at its end.

    Hydra turns exceptions of a callback into warnings, hence the exit codes.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Fix the sweep's folder for all its jobs; with ``sweep.resume``, an earlier one."""
        try:
            folder = sweep_folder(config)
        except AlsegError as error:
            print_error(error)
            sys.exit(2)
        with read_write(config.hydra):
            config.hydra.sweep.dir = str(folder)
            # Jobs are composed anew: a job with its own experiment_name would go elsewhere.
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(folder)}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print one line a job; exit code 1 if one of them has not finished."""
        if not print_sweep(Path(config.hydra.sweep.dir)):
            sys.exit(1)


def sweep_folder(config: DictConfig) -> Path:
    """The folder of the sweep that is about to start.

    Raises:
        ConfigError: if there is nothing to resume, or the folder holds a sweep that is not to be
            resumed.
    """
    folder = Path(config.hydra.sweep.dir)
    if not config.sweep.resume:
        if (folder / SWEEP_FILE).exists():
            raise ConfigError(f"{folder} holds a sweep already; continue it with sweep.resume=true")
        return folder
    chosen = any(o.startswith("hydra.sweep.dir=") for o in config.hydra.overrides.hydra)
    return folder if chosen else latest_sweep(folder.parent, config.hydra.overrides.task)


def latest_sweep(parent: Path, overrides: Sequence[str]) -> Path:
    """The latest sweep folder that the same command made.

    Raises:
        ConfigError: if there is none.
    """
    for path in sorted(parent.glob(f"sweep_*/{SWEEP_FILE}"), reverse=True):
        earlier = yaml.safe_load(path.read_text())["hydra"]["overrides"]["task"]
        if identifying(earlier) == identifying(overrides):
            return path.parent
    raise ConfigError(
        f"there is no sweep with these settings in {parent} to resume; give the same command as "
        "before, or name its folder with hydra.sweep.dir=..."
    )


def print_sweep(folder: Path) -> bool:
    """Print a table of the jobs in a sweep folder; returns whether all of them have finished."""
    table = Table(title=f"sweep {folder}")
    for heading in ("strategy", "seed", "status", "rounds", "test Dice", "seconds", "folder"):
        table.add_column(heading, no_wrap=True)
    failed: dict[str, str] = {}
    n_jobs = 0
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not (path / CONFIG_FILE).is_file() and not (path / JOB_FILE).is_file():
            continue  # a launcher's own
        n_jobs += 1
        job = Job.load(path)
        strategy = seed = rounds = dice = "-"
        if (path / CONFIG_FILE).is_file():
            config = load_config(path)
            strategy, seed = str(config.strategy.name), str(config.seed)
        if RunState.is_in(path):
            state = RunState.load(path)
            rounds = str(state.finished_rounds)
            dice = f"{state.history[-1]['test_dice']:.4f}" if state.history else "-"
        if job.status != FINISHED:
            failed[path.name] = job.reason or job.status
        table.add_row(strategy, seed, job.status, rounds, dice, f"{job.seconds:.0f}", path.name)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(f"{n_jobs - len(failed)} of {n_jobs} jobs finished")
    for name, reason in failed.items():
        console.print(f"not finished: {folder / name}: {reason}", soft_wrap=True, markup=False)
    if failed:
        console.print(
            "run what is missing with the same command and "
            f"sweep.resume=true hydra.sweep.dir={quoted(folder)}",
            soft_wrap=True,
            markup=False,
        )
    return not failed


def identifying(overrides: Sequence[str]) -> list[str]:
    """The overrides that say what a job or a sweep computes, in an order of their own."""
    return sorted(o for o in overrides if not o.startswith(("sweep.", "resume=")))


def job_hash(overrides: Sequence[str]) -> str:
    """A short hash of a job's overrides: its folder has the same name whenever it is started."""
    return hashlib.sha256(json.dumps(identifying(overrides)).encode()).hexdigest()[:8]


OmegaConf.register_new_resolver("job_hash", job_hash, replace=True)


def quoted(path: Path) -> str:
    """A path as a value on Hydra's command line."""
    return "'" + str(path).replace("'", r"\'") + "'"


def _end_with_parent() -> None:
    """End this process when the sweep's has gone, so that a killed sweep leaves no job running."""
    os.read(0, 1)  # not sys.stdin: a daemon thread must hold no lock when Python shuts down
    os.kill(os.getpid(), signal.SIGTERM)  # it saves the step that it is in


def main() -> None:
    """One job, in the child process: ``python -m alseg.sweeps RUN_FOLDER``."""
    from alseg import train  # here: it imports this module

    threading.Thread(target=_end_with_parent, daemon=True).start()
    print(f"job on {torch.get_num_threads()} thread(s)")
    folder = quoted(Path(sys.argv[1]))
    sys.argv = ["alseg.train", f"resume={folder}", f"hydra.run.dir={folder}"]
    train.main()


if __name__ == "__main__":
    main()
