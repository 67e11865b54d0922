"""``experiment=benchmark``: several data sets in one sweep, and their comparison."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from alseg.compare import compare
from alseg.config.composition import composed
from alseg.run.folder import CONFIG_FILE

TINY = (
    "experiment=benchmark", "data=auto", "trainer=cpu", "tracking=none", "data.num_workers=0",
    "data.rules.steps=2", "data.rules.filters=4", "data.rules.step_voxels=16000",
    "uncertainty=mc_dropout_2", "pool.rounds=2", "seed=1",
)  # fmt: skip
UNITS = {
    "volume": ("pool.initial=2", "pool.query_size=2"),
    "slice": ("pool.unit=slice", "pool.initial=6", "pool.query_size=4"),
}


@pytest.fixture
def roots(phantoms: Path, tmp_path: Path) -> str:
    """Two data sets, as the value of ``data.root``."""
    for name in ("first", "second"):
        shutil.copytree(phantoms, tmp_path / "data" / name)
    return f"{tmp_path}/data/first,{tmp_path}/data/second"


def sweep(folder: Path, *overrides: str) -> str:
    command = [sys.executable, "-m", "alseg.train", "-m", *TINY, f"output_dir={folder}"]
    command += [f"hydra.sweep.dir={folder}/benchmark/sweep", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.parametrize("unit", UNITS)
def test_one_sweep_over_data_sets_is_resumed_and_compared_by_data_set_and_over_all(
    unit: str, roots: str, tmp_path: Path
) -> None:
    where = f"data.root={roots}"
    if unit == "volume":
        sweep(tmp_path, *UNITS[unit], where, "strategy=random")
    resumed = (where, "strategy=random,entropy", "sweep.resume=true")
    printed = sweep(tmp_path, *UNITS[unit], *resumed)
    assert printed.count("finished before, not run again") == (2 if unit == "volume" else 0)
    jobs = sorted(path.parent.name for path in tmp_path.rglob(CONFIG_FILE))
    assert [job.rpartition("_")[0] for job in jobs] == [
        f"{data}_{strategy}_seed1"
        for data in ("first", "second") for strategy in ("entropy", "random")
    ]  # fmt: skip
    page = compare([str(tmp_path / "benchmark"), "--output", str(tmp_path / "page")])
    assert "Over 2 data sets (first, second)" in page.read_text()
    ranks = pd.read_csv(page.parent / "tables" / "ranks.csv").set_index("strategy")
    assert set(ranks.index) == {"random", "entropy"}
    assert (ranks[["first", "second", "all"]].sum() == 3).all()
    for data in ("first", "second"):
        dice = pd.read_csv(page.parent / data / "tables" / "dice.csv")
        assert sorted(dice["labelled"].unique()) == ([2, 4] if unit == "volume" else [6, 10])
        assert set(dice["n_seeds"]) == {1}


def test_the_folder_of_its_data_sets_is_said_once(tmp_path: Path) -> None:
    """Hydra composes a sweep once without what is swept, the data sets among it."""
    command = [sys.executable, "-m", "alseg.train", "-m", "experiment=benchmark", "seed=1"]
    command += [f"data.folder={tmp_path}/sets", "strategy=random", "tracking=none"]
    command += ["data=auto_hippocampus,auto_acdc", f"hydra.sweep.dir={tmp_path}/sweep"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 1
    for name in ("Task04_Hippocampus", "Task91_ACDC"):
        assert f"data.root is {tmp_path}/sets/{name}, which is not a folder" in run.stdout


def test_its_own_data_sets_and_seeds_are_the_sweep_unless_others_are_named() -> None:
    text = Path("conf/experiment/benchmark.yaml").read_text(encoding="utf-8")
    params = yaml.safe_load(text)["hydra"]["sweeper"]["params"]
    assert next(iter(params)) == "seed"  # whole seeds first
    roots = {}
    for data in params["data"].split(","):
        config = composed([f"data={data}", "experiment=benchmark", "data.folder=/sets"])
        roots[config.data.name] = config.data.root
        assert config.model.network._target_ == "monai.networks.nets.DynUNet"
    assert roots == {
        "Task04_Hippocampus": "/sets/Task04_Hippocampus",
        "Task91_ACDC": "/sets/Task91_ACDC",
        "rare_lesions": None,
    }
    for strategy in params["strategy"].split(","):
        assert composed([f"strategy={strategy}"]).strategy.name == strategy
    assert len(params["seed"].split(",")) >= 5


def test_the_rare_lesions_are_of_a_phantom_seed_that_nothing_else_uses() -> None:
    own = composed(["data=auto_rare_lesions"]).data.phantom.seed
    others = [path for path in Path("conf").rglob("*.yaml") if path.stem != "auto_rare_lesions"]
    used = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in others]
    seeds = {
        content["data"]["phantom"]["seed"]
        for content in used
        if isinstance(content, dict)
        and isinstance(content.get("data"), dict)
        and "seed" in (content["data"].get("phantom") or {})
    }
    assert own not in seeds | {composed(["data=phantom"]).data.phantom.seed}
