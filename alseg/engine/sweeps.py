"""Sweeps: every job in a process and a folder of its own, and a summary at the end.

Hydra's launchers say when and where a job starts; the job itself is a process of its own, whatever
the launcher (see ``alseg.engine.jobs``). Without it, one killed worker makes joblib throw away all
jobs.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from rich.text import Text

from alseg.config.command_line import identifying, override_to_paste, typed
from alseg.config.composition import instantiate
from alseg.config.messages import sentence
from alseg.config.planned import planned, same_plan
from alseg.config.settings import (
    config_hash,
    flat,
    load_config,
    load_start,
    save_config,
    save_start,
)
from alseg.config.trust import untrusted
from alseg.core.area_under_curve import area_under_budget_curve
from alseg.core.errors import AlsegError, ConfigError, DataError
from alseg.engine.jobs import run_in_fork, was_interrupted
from alseg.run.folder import CONFIG_FILE, START_FILE
from alseg.run.lock import locked_run
from alseg.run.measure import TEST, Measure
from alseg.run.state import RunState
from alseg.system.console import console, duration, fits, say
from alseg.system.files import read_json, write_json
from alseg.system.isolation import exit_in_words
from alseg.system.secrets import kept_settings, without_secrets
from alseg.tracking.tracker import Trackers
from alseg.training.trainers import n_devices

log = logging.getLogger(__name__)

JOB_FILE, LOG_FILE = "job.json", "job.log"
SWEEP_FILE = "multirun.yaml"  # Hydra's
FINISHED, FAILED, UNFINISHED = "finished", "failed", "unfinished"
# How long a job that is started again waits for its earlier process, which may still be saving, or
# whose lock a file server has yet to notice.
PATIENCE_S = 120


@dataclass(frozen=True)
class Job:
    """How a job has ended: job.json in its folder.

    Attributes:
        status: finished or failed; unfinished while it runs, and if there is no job.json.
        reason: why it is not finished.
        seconds: how long it took, since it was started last.
        number: its number in the sweep that has started it; None if it is not known.
    """

    status: str
    reason: str = ""
    seconds: float = 0.0
    number: int | None = None

    def save(self, folder: Path) -> None:
        """Write job.json."""
        write_json(folder / JOB_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Read job.json; a damaged one is ignored, and the job continues from its state."""
        path = folder / JOB_FILE
        if not path.is_file():
            return cls(UNFINISHED)
        try:
            job = cls(**read_json(path))
        except (DataError, TypeError) as error:
            log.warning(f"{path} is damaged: {error}")
            return cls(UNFINISHED)
        return job if job.status in (FINISHED, FAILED, UNFINISHED) else cls(UNFINISHED)


# Runs the job in a folder to its end, in a process of its own; trusts the packages that come first.
Work = Callable[[Sequence[str], Path], None]


def run_job(
    config: DictConfig,
    folder: Path,
    overrides: Sequence[str],
    work: Work,
    n_threads: int | None = None,
    number: int | None = None,
) -> float:
    """Run one job of a sweep to its end, in a child process.

    Never raises for what goes wrong in the job: it is recorded as failed, and the other jobs run.
    A job that is started again within its sweep, as Slurm and Ray do, continues where it was.

    Args:
        config: the job's composed configuration.
        folder: the job's folder.
        overrides: what the configuration was composed of.
        work: what the child process does; a function of a module, found there by its name.
        n_threads: of the child process; None for what the environment says.
        number: of the job in its sweep.

    Returns:
        The area under the budget curve of the validation Dice; NaN if the job failed.
    """
    name = job_name(config, overrides)
    again = number is not None and Job.load(folder).number == number
    if (folder / CONFIG_FILE).exists() and not (config.sweep.resume or again):
        log.warning(f"[{name}] is in this sweep twice, and run once")
        return math.nan
    try:
        wait_until_free(folder, PATIENCE_S if again else 0)
    except ConfigError as error:  # a job that an earlier sweep has left running: hands off
        log.error(f"[{name}] {error}")
        return math.nan
    started = time.monotonic()
    try:
        if Job.load(folder).status != FINISHED:
            Job(UNFINISHED, number=number).save(folder)
        check_job(config, folder, overrides)
        if Job.load(folder).status == FINISHED:
            log.info(f"[{name}] finished before, not run again")
            return validation_area(folder)
        own = untrusted(OmegaConf.to_container(config, resolve=True))
        if n_threads:  # joblib gives its workers their share of the cores by itself
            os.environ["OMP_NUM_THREADS"] = str(n_threads)
        status, reason = _run_child(folder, name, partial(work, own))
    except Exception as error:  # the boundary of a job: whatever it is, it is reported
        status, reason = FAILED, sentence(error)
    seconds = round(time.monotonic() - started, 1)
    Job(status, reason, seconds, number).save(folder)
    if status == FINISHED:
        return validation_area(folder)
    log.error(f"[{name}] {status}: {reason}")
    if status == FAILED:
        _track_failure(config, folder, reason)
    return math.nan


def job_name(config: DictConfig, overrides: Sequence[str]) -> str:
    """What a job's lines on the screen begin with: its data set if it was named, strategy, seed."""
    given = dict(text.split("=", maxsplit=1) for text in overrides if "=" in text)
    data_sets = [given.get("data", ""), Path(given.get("data.root", "").strip("'")).name]
    return " ".join(filter(None, [*data_sets, config.strategy.name, f"seed {config.seed}"]))


def wait_until_free(folder: Path, patience_s: float) -> None:
    """Wait until no process works on a run folder.

    Args:
        folder: the run folder.
        patience_s: how many seconds to wait at most.

    Raises:
        ConfigError: if a process still does.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with locked_run(folder):
                return
        except ConfigError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(1)


def note_lost(config: DictConfig, folder: Path, overrides: Sequence[str], reason: str) -> None:
    """Record that a job has ended without having said how, unless it has finished.

    Args:
        config: the job's composed configuration.
        folder: the job's, which is made if the job has never started.
        overrides: what the configuration was composed of.
        reason: what the launcher knows of its end.
    """
    job = Job.load(folder)
    if job.status == FINISHED:
        return
    folder.mkdir(parents=True, exist_ok=True)
    Job(FAILED, reason, number=job.number).save(folder)
    with suppress(AlsegError):  # the job itself reports it, when it is run again
        check_job(config, folder, overrides)


def check_job(config: DictConfig, folder: Path, overrides: Sequence[str]) -> None:
    """Check that a job can run in its folder, and write its configuration there.

    Raises:
        ConfigError: if it needs several devices, or the folder holds a run of other settings.
    """
    devices = n_devices(config.trainer)
    if devices > 1:
        command = shlex.join(overrides)
        raise ConfigError(
            f"a sweep runs its jobs on one device each, but trainer.devices gives {devices}: the "
            "launcher cannot start the other processes of a job; run each job by itself: "
            f"torchrun --nproc-per-node {devices} -m alseg.train {command}"
        )
    if not (folder / CONFIG_FILE).exists():
        save_start(folder, overrides)
        save_config(planned(config, folder), folder)
        return
    saved = load_config(folder)
    again = planned(config, folder, kept=same_plan(config, saved))
    if config_hash(saved) != config_hash(again):
        raise ConfigError(
            f"{folder} holds a run with other settings; start the sweep in another hydra.sweep.dir"
        )


def validation_area(folder: Path) -> float:
    """Area under the budget curve of the validation Dice of the run in a folder."""
    return area_under_budget_curve(*RunState.load(folder).learning_curve("val_dice"))


def _run_child(folder: Path, name: str, work: Callable[[Path], None]) -> tuple[str, str]:
    """Run the job in a process of its own, passing on its output.

    Args:
        folder: the job's.
        name: how its output is marked.
        work: what the process does with the folder.

    Returns:
        The job's status, and why it is not finished.
    """
    last = ""
    with (folder / LOG_FILE).open("a", encoding="utf-8") as file:

        def take(line: str) -> None:
            nonlocal last
            line = without_secrets(line)
            file.write(line)
            file.flush()
            if line.strip():
                print(f"[{name}] {line}", end="", flush=True)
                last = line.strip()

        exit_code = run_in_fork(work, folder, take)
    if exit_code == 0:
        return FINISHED, ""
    status = UNFINISHED if was_interrupted(exit_code) else FAILED
    if exit_code < 0:
        return status, f"the process {exit_in_words(exit_code)}"
    return status, last.removeprefix("alseg: error: ") or f"exit code {exit_code}"


def _track_failure(config: DictConfig, folder: Path, reason: str) -> None:
    """Mark the job's run in the tracking store as failed; makes one if there is none yet."""
    try:
        tracker = Trackers(instantiate(config.tracking))
        tags = {"strategy": str(config.strategy.name), "seed": str(config.seed)}
        tracker.open(folder, flat(kept_settings(config)), tags)
        tracker.close("FAILED", reason)
    except Exception as error:  # the failure itself has been recorded: only say it
        log.error(f"the failure could not be tracked: {sentence(error)}")


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
    chosen = any(o.startswith("hydra.sweep.dir=") for o in typed(config.hydra.overrides.hydra))
    return folder if chosen else latest_sweep(folder.parent, typed(config.hydra.overrides.task))


def latest_sweep(parent: Path, overrides: Sequence[str]) -> Path:
    """The latest sweep folder that the same command made.

    Raises:
        ConfigError: if there is none.
    """
    for path in sorted(parent.glob(f"sweep_*/{SWEEP_FILE}"), reverse=True):
        try:
            earlier = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["overrides"]["task"]
            if identifying(earlier) == identifying(overrides):
                return path.parent
        except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
            log.warning(f"{path} is damaged: {error}")
    raise ConfigError(
        f"there is no sweep with these settings in {parent} to resume; give the same command as "
        "before, or name its folder with hydra.sweep.dir=..."
    )


@dataclass(frozen=True)
class JobRow:
    """A job as the tables of a sweep show it.

    Attributes:
        strategy: its strategy.
        settings: its overrides besides strategy and seed that not all jobs have.
        seed: its seed.
        job: how it has ended.
        rounds: finished rounds.
        dice: by which the run is judged, of the last round; None before the first.
        area: area under the budget curve of that Dice; None before the first round.
        measure: which Dice that is.
    """

    strategy: str
    settings: str
    seed: str
    job: Job
    rounds: int
    dice: float | None
    area: float | None
    measure: Measure = TEST


def print_sweep(folder: Path) -> bool:
    """Print the jobs in a sweep folder, the means of each strategy, and what to do next.

    Returns:
        Whether all jobs have finished.
    """
    rows = job_rows(folder)
    print_tables(list(rows.values()))
    failed = {name: row.job for name, row in rows.items() if row.job.status != FINISHED}
    say(f"{len(rows) - len(failed)} of {len(rows)} jobs finished in {folder}")
    for name, job in failed.items():
        say(f"not finished: {folder / name}: {job.reason or job.status}")
    if failed:
        say(
            "run what is missing with the same command and "
            f"sweep.resume=true {override_to_paste('hydra.sweep.dir', folder)}"
        )
    else:
        say(f"compare them: python -m alseg.compare {shlex.quote(str(folder))}")
    return not failed


def print_tables(jobs: Sequence[JobRow]) -> None:
    """Print the jobs and the means of each strategy; names too long for a table above it."""
    show_settings = any(row.settings for row in jobs)
    if not fits(jobs_table(jobs, show_settings)):
        names = list(dict.fromkeys((row.strategy, row.settings) for row in jobs))
        for number, (strategy, settings) in enumerate(names, start=1):
            say(f"strategy {number}: {strategy} {settings}".rstrip())
        numbers = {name: str(number) for number, name in enumerate(names, start=1)}
        jobs = [replace(j, strategy=numbers[j.strategy, j.settings], settings="") for j in jobs]
        show_settings = False
    console().print(jobs_table(jobs, show_settings))
    if any(row.job.status == FINISHED for row in jobs):
        console().print(means_table(jobs, show_settings))


def job_rows(folder: Path) -> dict[str, JobRow]:
    """The jobs in a sweep folder, by the names of their folders."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    # other folders are a launcher's own
    paths = [p for p in paths if (p / CONFIG_FILE).is_file() or (p / JOB_FILE).is_file()]
    overrides = {
        path: identifying(load_start(path).overrides or ()) if (path / START_FILE).is_file() else ()
        for path in paths
    }
    common = set.intersection(*map(set, overrides.values())) if paths else set()
    rows = {}
    for path in paths:
        if (path / CONFIG_FILE).is_file():
            config = load_config(path)
            strategy, seed = str(config.strategy.name), str(config.seed)
        else:
            strategy, seed = (_given(name, overrides[path]) for name in ("strategy", "seed"))
        own = [o for o in overrides[path] if o not in common]
        rows[path.name] = JobRow(
            strategy,
            " ".join(o for o in own if not o.startswith(("strategy=", "seed="))),
            seed,
            Job.load(path),
            *progress(path),
        )
    return rows


def progress(folder: Path) -> tuple[int, float | None, float | None, Measure]:
    """How far a job has come: the fields of ``JobRow`` from ``rounds`` on."""
    state = RunState.load(folder) if RunState.is_in(folder) else None
    if state is None or not state.history:
        return 0, None, None, TEST
    labelled, dice = state.learning_curve(state.measure.column)
    return len(dice), dice[-1], area_under_budget_curve(labelled, dice), state.measure


def measure_heading(jobs: Sequence[JobRow]) -> str:
    """How the column of the jobs' Dice is called."""
    return " or ".join(sorted({row.measure.title for row in jobs if row.rounds} or {TEST.title}))


def _given(name: str, overrides: Sequence[str]) -> str:
    """What overrides give a setting, for a job that has failed before it was configured."""
    values = [o.removeprefix(f"{name}=") for o in overrides if o.startswith(f"{name}=")]
    return values[-1] if values else "-"


def jobs_table(jobs: Sequence[JobRow], show_settings: bool) -> Table:
    """One row a job."""
    table = _table("jobs of the sweep", show_settings)
    for heading in ("seed", "status", "rounds", measure_heading(jobs), "area", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in jobs:
        settings = [Text(row.settings)] if show_settings else []
        table.add_row(
            Text(row.strategy),
            *settings,
            row.seed,
            row.job.status,
            str(row.rounds or "-"),
            "-" if row.dice is None else f"{row.dice:.3f}",
            "-" if row.area is None else f"{row.area:.3f}",
            duration(row.job.seconds),
        )
    return table


def means_table(jobs: Sequence[JobRow], show_settings: bool) -> Table:
    """One row a strategy (and settings): mean and standard deviation over its finished jobs."""
    table = _table("mean ± standard deviation over seeds", show_settings)
    finished = [row for row in jobs if row.job.status == FINISHED]
    for heading in ("seeds", measure_heading(finished), "area under the curve"):
        table.add_column(heading, justify="right", no_wrap=True)
    for strategy, settings in dict.fromkeys((row.strategy, row.settings) for row in finished):
        group = [row for row in finished if (row.strategy, row.settings) == (strategy, settings)]
        table.add_row(
            Text(strategy),
            *([Text(settings)] if show_settings else []),
            str(len(group)),
            _mean([row.dice for row in group if row.dice is not None]),
            _mean([row.area for row in group if row.area is not None]),
        )
    return table


def _table(title: str, show_settings: bool) -> Table:
    table = Table(title=title)
    for heading in ("strategy", *(["settings"] if show_settings else [])):
        table.add_column(heading, overflow="fold")
    return table


def _mean(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"
