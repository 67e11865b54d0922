"""A finished run that is resumed with more rounds, from the command line, on tiny phantoms.

Its last round has made no query. It makes it first, so that the run ends as one that had the
larger number of rounds from the beginning.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from alseg.comparison.runs import gather_runs
from alseg.core.errors import ConfigError
from alseg.run.state import RunState
from alseg.system.files import read_json, read_tensors
from alseg.training.module import SegmentationModule
from tests.conftest import Outcome, are_equal
from tests.smoke_runs import resume_smoke, run_smoke

QUICK = ("steps_per_round=1", "val_interval=1", "uncertainty.n_passes=2", "pool.query_size=1")
PATCHES = ("pool.unit=patch", "pool.patch_voxels=[12,12,8]", "pool.initial=4")
SLICES = ("pool.unit=slice", "pool.initial=4")
RUNS = {
    "random volumes": ("strategy=random",),
    "volumes": ("strategy=badge", "round_start=continue"),
    "random patches": ("strategy=random", *PATCHES),
    "patches": ("strategy=power_bald", *PATCHES, "cost=voxels"),
    "random slices": ("strategy=foreground_aware_random", *SLICES),
    "slices": ("strategy=kmeans_bald", *SLICES),
    "a few candidates": ("strategy=entropy", "pool.candidates=2"),
    "repeats": ("strategy=entropy", "pool.repeat_uncertain=true", "pool.query_size=4"),
    "two stages": ("strategy=random", "semi_supervised=pseudo_label", "steps_per_round=2"),
}


def results(folder: Path) -> dict[str, Any]:
    """All that a run leaves, except seconds and where it took place."""
    state = json.loads((folder / "state.json").read_text())
    for name in ("sha256", "timings"):
        del state[name]
    metrics = pd.read_csv(folder / "metrics.csv")
    metrics = metrics.drop(columns=[n for n in metrics if "seconds" in n or "preprocessed" in n])
    tables = [folder / "queries.csv", *sorted(folder.glob("rounds/*/[cfs]*.csv"))]
    tracked = read_json(folder / "tracking.json")["rounds"]
    return {
        "state": state,
        "metrics": metrics.to_csv(),
        "tables": {path.relative_to(folder): path.read_text() for path in tables},
        "files": sorted(p.relative_to(folder) for p in folder.glob("rounds/*/*")),
        "tracked": {number: (a["status"], a["labelled"]) for number, a in tracked.items()},
    }


def weights(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): read_tensors(path)["state_dict"]
        for path in sorted(folder.glob("rounds/*/*.ckpt"))
    }


def check_same(folder: Path, whole: Path) -> None:
    assert results(folder) == results(whole)
    ours, theirs = weights(folder), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(are_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", RUNS)
def test_more_rounds_end_as_if_they_had_been_wanted_from_the_beginning(
    name: str, shared: Path, tmp_path: Path
) -> None:
    settings = (*QUICK, *RUNS[name])
    run_smoke(tmp_path / "whole", shared, *settings, "pool.rounds=3")
    finished = run_smoke(tmp_path / "run", shared, *settings, "pool.rounds=2")
    resume_smoke(tmp_path / "run", "pool.rounds=3")
    check_same(tmp_path / "run", tmp_path / "whole")
    assert json.loads((tmp_path / "run/state.json").read_text())["history"][:2] == (
        finished["history"]
    )


@pytest.mark.parametrize(
    "settings",
    [
        ("strategy=bald", "uncertainty=ensemble", "uncertainty.n_members=2"),
        ("strategy=entropy", "data/splits=annotated", "validation=cross"),
    ],
)
def test_the_last_round_trains_the_networks_that_only_a_query_needs(
    settings: tuple[str, ...], shared: Path, tmp_path: Path
) -> None:
    settings = ("steps_per_round=1", "val_interval=1", "pool.query_size=1", *settings)
    run_smoke(tmp_path / "whole", shared, *settings, "pool.initial=4", "pool.rounds=2")
    run_smoke(tmp_path / "run", shared, *settings, "pool.initial=4", "pool.rounds=1")
    resume_smoke(tmp_path / "run", "pool.rounds=2")
    check_same(tmp_path / "run", tmp_path / "whole")
