"""Run an active-learning experiment: ``python -m alseg.train strategy=variance``.

An entry point: ``alseg.engine.runs`` starts or resumes a run, ``alseg.engine.sweeps`` runs the jobs
of a sweep. They are imported when there is a job, so that help, version and completion answer at
once.
"""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from alseg.config.command_line import override, typed
from alseg.config.composition import conf_folder
from alseg.config.entry_points import run_hydra_entry_point
from alseg.config.messages import print_error, report_errors
from alseg.core.counts import counted
from alseg.core.errors import AlsegError, ConfigError
from alseg.system.interruption import Interrupted
from alseg.system.text import literal


@hydra.main(version_base="1.3", config_path=conf_folder(), config_name="config")
def _hydra_main(config: DictConfig) -> float:
    with report_errors(), explain_sweep_resume():
        return _job(config)


@contextmanager
def explain_sweep_resume() -> Iterator[None]:
    """At Ctrl-C in a sweep, say how to continue it."""
    try:
        yield
    except KeyboardInterrupt:
        if not {"-m", "--multirun"} & set(sys.argv):
            raise
        command = [a for a in sys.argv[1:] if not a.startswith("sweep.resume=")]
        command.append("sweep.resume=true")
        raise Interrupted(signal.SIGINT, shlex.join(command)) from None


def _job(config: DictConfig) -> float:
    from alseg.engine.runs import claim, release_claim, train
    from alseg.engine.sweeps import run_job
    from alseg.system.distributed import process_group, rank

    settings = HydraConfig.get()
    folder, overrides = job_folder(settings), typed(settings.overrides.task)
    try:
        if settings.mode == RunMode.MULTIRUN:
            # of the module, where the job's process finds it: this one may be called __main__
            from alseg.train import work

            n_threads = settings.launcher.get("cpus_per_task")
            return run_job(config, folder, overrides, work, n_threads, settings.job.num)
        if OmegaConf.select(config, "sweep.resume"):
            raise ConfigError(
                "sweep.resume continues a sweep (-m); continue a single run with resume=RUN_FOLDER"
            )
        if rank() > 0:
            logging.disable(logging.INFO)  # the first process says it all
        elif not config.resume:
            folder = claim(folder)
        with process_group(config.trainer.accelerator):
            return train(config, folder, overrides)
    finally:
        release_claim(folder)
        # Hydra makes the folder before the settings are checked: leave no empty ones behind.
        for path in (folder, *folder.parents):
            if not path.is_dir() or any(path.iterdir()) or path == Path.cwd():
                break
            path.rmdir()


def job_folder(settings: HydraConf) -> Path:
    """The job's folder; in ``runtime.output_dir`` a ``${`` of its name would be a reference."""
    if settings.mode == RunMode.MULTIRUN:
        return Path(settings.sweep.dir, settings.sweep.subdir).absolute()
    return Path(settings.run.dir).absolute()


def work(own: Sequence[str], folder: Path) -> None:
    """Run one job to its end, in its own process.

    Args:
        own: functions and classes of the user's that the job builds.
        folder: the job's.
    """
    import torch

    print(f"job on {counted(torch.get_num_threads(), 'thread')}")
    sys.argv = [
        "alseg.train",
        override("resume", folder),
        override("hydra.run.dir", folder),
        override("trusted_packages", own),
    ]
    main()


class SweepCallback(Callback):
    """Finds the folder of a sweep before its jobs start, and sums up the jobs at its end.

    conf/config.yaml names it. Hydra turns exceptions of a callback into warnings, hence the exit
    codes.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Fix the sweep's folder for all its jobs; with ``sweep.resume``, an earlier one."""
        from alseg.engine.sweeps import sweep_folder

        try:
            folder = sweep_folder(config)
        except AlsegError as error:
            print_error(error)
            sys.exit(2)
        with read_write(config.hydra):
            config.hydra.sweep.dir = literal(str(folder))
            # Jobs are composed again: a job with its own experiment_name would go elsewhere.
            config.hydra.overrides.hydra.append(override("hydra.sweep.dir", folder))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print one line a job; exit code 1 if one of them has not finished."""
        from alseg.engine.sweeps import print_sweep

        if not print_sweep(Path(config.hydra.sweep.dir)):
            sys.exit(1)


def main() -> None:
    """The entry point of ``python -m alseg.train``."""

    def main_of_sweeps() -> None:
        with explain_sweep_resume():
            _hydra_main()

    run_hydra_entry_point(main_of_sweeps)


if __name__ == "__main__":
    main()
