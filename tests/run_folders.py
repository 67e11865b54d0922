"""Run folders and data sets that are small enough to be made for each test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from alseg.config.settings import config_hash, load_config
from alseg.core.pool import Pool
from alseg.run.folder import STATE_FILE
from alseg.run.state import RunState
from alseg.system.files import read_json, write_json
from tests.annotation_page.campaign import GRIDS, SHAPE, drawn
from tests.conftest import write_msd


def run_on(
    folder: Path,
    root: Path,
    pool: Pool,
    target: str = "msd.read_msd",
    queries: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """A run folder that says which data set it works on, and what of it is annotated."""
    folder.mkdir(exist_ok=True)
    task = {"_target_": f"alseg.data.formats.{target}", "root": str(root)}
    config = yaml.safe_dump({"data": {"task": task}})
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    RunState(pool=pool, config_hash="", queries=tuple(map(dict, queries))).save(folder)
    return folder


def settle(folder: Path) -> None:
    """Let a run say that its settings were these from its start, as who changes them could."""
    state = read_json(folder / STATE_FILE)
    write_json(folder / STATE_FILE, state | {"config_hash": config_hash(load_config(folder))})


def change_cell(table: Path, column: int, text: str) -> None:
    """Change a cell in the first row of a CSV file that quotes nothing there."""
    lines = table.read_text(encoding="utf-8").splitlines()
    cells = lines[1].split(",")
    cells[column] = text
    lines[1] = ",".join(cells)
    table.write_text("\n".join([*lines, ""]), encoding="utf-8")


def blobs(root: Path, n_channels: int = 1, **settings: Any) -> tuple[Path, list[np.ndarray]]:
    """Five volumes on awkward grids as an MSD data set, and their labels."""
    shape = SHAPE if n_channels == 1 else (*SHAPE, n_channels)
    images = [np.random.default_rng(i).normal(size=shape).astype(np.float32) for i in range(5)]
    labels = [drawn(i) for i in range(5)]
    affines = [*GRIDS.values()][1:]
    return write_msd(root, images, labels, affines=affines, **settings), labels
