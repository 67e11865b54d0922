"""The data set of a run, from its run folder and nothing else of its experiment."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from alseg.config.build import build_task
from alseg.config.settings import started_in
from alseg.config.trust import check_targets
from alseg.data.task import Task
from alseg.run.folder import CONFIG_FILE


def task_of_run(folder: Path, config: DictConfig, trusted_packages: Collection[str] = ()) -> Task:
    """Read the data set that a run works on.

    Args:
        folder: the run folder.
        config: its settings.
        trusted_packages: of the user's own, which the settings may name.

    Raises:
        ConfigError: if the settings name what is not to be trusted.
        DataError: if the data set is missing or broken.
    """
    built = OmegaConf.create({"data": {"task": OmegaConf.select(config, "data.task")}})
    check_targets(OmegaConf.to_container(built), folder / CONFIG_FILE, trusted_packages)
    with started_in(folder):
        return build_task(config)
