"""Runs the smoke experiment in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from alseg.config.command_line import override
from alseg.config.composition import composed
from alseg.engine.runs import train


def smoke_overrides(shared: Path, *overrides: str) -> list[str]:
    """The smoke experiment on the CPU, untracked; ``shared`` keeps phantoms and the cache."""
    return [
        "experiment=smoke",
        "trainer=cpu",
        "tracking=none",
        "pictures=0",  # a second each
        f"output_dir={shared}",
        *overrides,
    ]


def smoke_config(shared: Path, *overrides: str) -> DictConfig:
    """The composed configuration of ``smoke_overrides``."""
    return composed(smoke_overrides(shared, *overrides))


def run_smoke(folder: Path, shared: Path, *overrides: str) -> dict[str, Any]:
    """Run the smoke experiment in ``folder``; returns its state.json."""
    folder.mkdir(parents=True, exist_ok=True)
    train(smoke_config(shared, *overrides), folder, smoke_overrides(shared, *overrides))
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def resume_smoke(folder: Path, *overrides: str) -> dict[str, Any]:
    """Resume the run in ``folder`` with other settings; returns its state.json."""
    arguments = [override("resume", folder), "resume_force=true", *overrides]
    train(composed(arguments), folder, arguments)
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state
