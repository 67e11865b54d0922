"""Runs experiments through the front door, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from alseg.cli import conf_folder
from alseg.train import train


def smoke_config(shared: Path, *overrides: str, hydra: bool = False) -> DictConfig:
    """The smoke experiment on the CPU, untracked; ``shared`` keeps phantoms and the cache."""
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        return compose(
            "config",
            [
                "experiment=smoke",
                "trainer=cpu",
                "tracking=none",
                "pictures=0",  # a second each
                f"output_dir={shared}",
                *overrides,
            ],
            return_hydra_config=hydra,
        )


def run_smoke(folder: Path, shared: Path, *overrides: str) -> dict[str, Any]:
    """Run the smoke experiment in ``folder``; returns its state.json."""
    folder.mkdir(parents=True, exist_ok=True)
    runtime = (f"hydra.runtime.output_dir={folder}", "hydra.job.num=0")
    HydraConfig.instance().set_config(smoke_config(shared, *runtime, *overrides, hydra=True))
    train(smoke_config(shared, *overrides))
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state
