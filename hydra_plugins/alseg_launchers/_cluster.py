"""What the launchers on clusters share: a job that another process runs, and one that gets lost."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

log = logging.getLogger("alseg.launchers")


class ClusterLauncher(Launcher):
    """A launcher whose jobs run in processes on other machines, and may end with them.

    A job that ends without a result is reported in a sentence, in the summary of the sweep as well,
    and stops no other.

    Args:
        settings: those in the YAML of conf/hydra/launcher.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings: dict[str, Any] = {
            name: OmegaConf.to_container(value, resolve=True)
            if OmegaConf.is_config(value)
            else value
            for name, value in settings.items()
        }

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra has for a launcher; it travels to the jobs with this object."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.singletons = Singleton.get_state()

    def __call__(self, overrides: Sequence[str], number: int) -> JobReturn:
        """Run a job, in a process of the cluster.

        Args:
            overrides: the job's.
            number: of the job in its sweep.

        Returns:
            What the job's function returns, or has raised.
        """
        Singleton.set_state(self.singletons)
        setup_globals()
        return run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=self.job_config(overrides, number),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def job_config(self, overrides: Sequence[str], number: int) -> DictConfig:
        """The configuration of a job, Hydra's part included."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config.hydra.job):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        return config

    def lost(self, overrides: Sequence[str], number: int, reason: str) -> JobReturn:
        """Report a job that has ended without a result.

        Returns:
            NaN for a job of alseg.train, which its sweep sums up as failed; else an error, which
            ends the command when all jobs are done.
        """
        from alseg.config.command_line import typed
        from alseg.core.errors import JobLostError
        from alseg.engine.sweeps import note_lost

        config = self.job_config(overrides, number)
        folder = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir).absolute()
        own = typed(config.hydra.overrides.task)
        with open_dict(config):
            del config["hydra"]
        if "sweep" not in config:
            error = JobLostError(f"{' '.join(overrides)}: {reason}")
            return JobReturn(overrides, status=JobStatus.FAILED, _return_value=error)
        log.error(f"[{config.strategy.name} seed {config.seed}] {reason}")
        note_lost(config, folder, own, reason)
        return JobReturn(overrides, status=JobStatus.COMPLETED, _return_value=math.nan)
