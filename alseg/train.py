"""Run an active-learning experiment: ``python -m alseg.train strategy=variance``.

A door: ``alseg.engine.runs`` starts or resumes a run, ``alseg.engine.sweeps`` runs the jobs of a
sweep. They are imported when there is a job, so that help, version and completion answer at once.
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from alseg.config.command_line import typed
from alseg.config.composition import conf_folder
from alseg.config.entry_points import run_hydra_entry_point
from alseg.config.messages import told
from alseg.core.errors import ConfigError


@hydra.main(version_base="1.3", config_path=conf_folder(), config_name="config")
def _hydra_main(config: DictConfig) -> float:
    with told():
        return _job(config)


def _job(config: DictConfig) -> float:
    from alseg.engine.runs import claim, give_up, train
    from alseg.engine.sweeps import run_job
    from alseg.system.distributed import process_group, rank

    settings = HydraConfig.get()
    folder = job_folder(settings)
    try:
        if settings.mode == RunMode.MULTIRUN:
            return run_job(config, folder)
        if OmegaConf.select(config, "sweep.resume"):
            raise ConfigError(
                "sweep.resume continues a sweep (-m); continue a single run with resume=RUN_FOLDER"
            )
        if rank() > 0:
            logging.disable(logging.INFO)  # the first process says it all
        elif not config.resume:
            folder = claim(folder)
        with process_group(config.trainer.accelerator):
            return train(config, folder, typed(settings.overrides.task))
    finally:
        give_up(folder)
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


def main() -> None:
    """The entry point of ``python -m alseg.train``."""
    run_hydra_entry_point(_hydra_main)


if __name__ == "__main__":
    main()
