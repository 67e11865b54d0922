"""data.groups through the front door: no patient is on both sides of a measurement."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from alseg.config.command_line import override
from alseg.run.state import RunState
from tests.conftest import Outcome
from tests.smoke_runs import run_smoke

PATIENTS = override("data.groups", r"patient\d+")


@pytest.fixture(scope="module")
def two_frames(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twelve phantoms as two frames of each of six patients."""
    root = tmp_path_factory.mktemp("two_frames")
    content = json.loads((phantoms / "dataset.json").read_text())
    for index, entry in enumerate(content["training"]):
        for kind, path in list(entry.items()):
            name = f"{Path(path).parent.name}/patient{index // 2}_frame{index % 2}.nii.gz"
            (root / name).parent.mkdir(exist_ok=True)
            shutil.copy(phantoms / path, root / name)
            entry[kind] = f"./{name}"
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def patient(case_ids: pd.Series) -> pd.Series:
    return case_ids.str.split("_").str[0]


def parts_of(folder: Path) -> dict[str, set[str]]:
    """The patients of each part of a run's first round."""
    cases = pd.read_csv(folder / "rounds" / "round_01" / "cases.csv")
    pool = RunState.load(folder).pool
    parts = {name: set(patient(rows["case_id"])) for name, rows in cases.groupby("part")}
    return parts | {"training": set(patient(pd.Series([*pool.labelled, *pool.unlabelled])))}


def test_a_split_by_share_keeps_the_frames_of_a_patient_in_one_part(
    two_frames: Path, shared: Path, tmp_path: Path
) -> None:
    settings = (f"data.task.root={two_frames}", "strategy=random", "pool.rounds=1")
    run_smoke(tmp_path / "grouped", shared, *settings, PATIENTS)
    run_smoke(tmp_path / "plain", shared, *settings)
    grouped, plain = parts_of(tmp_path / "grouped"), parts_of(tmp_path / "plain")
    assert grouped.keys() == {"training", "val", "test"}
    assert sum(map(len, grouped.values())) == 6
    assert sum(map(len, plain.values())) > 6  # so that this data set shows the difference


def test_folds_keep_the_frames_of_a_patient_together(
    two_frames: Path, shared: Path, tmp_path: Path
) -> None:
    settings = ("validation=cross", "validation.folds=3", "data/splits=annotated", PATIENTS)
    some = ("strategy=random", "pool.initial=6", "pool.rounds=1", "steps_per_round=2")
    run_smoke(tmp_path, shared, f"data.task.root={two_frames}", *settings, *some)
    cases = pd.read_csv(tmp_path / "rounds" / "round_01" / "cases.csv")
    folds = cases.groupby(patient(cases["case_id"]))["fold"].nunique()
    assert len(folds) < len(cases) == 6  # some patient has both frames annotated
    assert set(folds) == {1}


@pytest.fixture
def crossing(two_frames: Path, tmp_path: Path) -> Path:
    """The data set with a split.json that tests with a patient of the pool."""
    root = shutil.copytree(two_frames, tmp_path / "crossing")
    names = sorted(path.name.split(".")[0] for path in (root / "imagesTr").iterdir())
    split = {"training": names[:7], "validation": names[8:10], "test": [names[7], *names[10:]]}
    (root / "split.json").write_text(json.dumps(split))
    return root


TOLD = (
    "1 group of data.groups has cases in several parts of the split; the first is patient3 "
    "(patient3_frame0 in training, patient3_frame1 in test)"
)


def test_a_split_file_that_parts_a_patient_is_told_once(
    crossing: Path, train: Callable[..., Outcome]
) -> None:
    own = ("data/splits=own", f"data.splits.root={crossing}", f"data.task.root={crossing}")
    few = ("strategy=random", "pool.rounds=1", "steps_per_round=2", "trainer=cpu")
    told = train(*own, *few, PATIENTS)
    assert told.exit_code == 0, told.err
    assert (told.out + told.err).replace("\n", " ").count(TOLD) == 1
    silent = train(*own, *few)
    assert silent.exit_code == 0
    assert "data.groups" not in silent.out + silent.err


def test_validate_tells_of_a_split_file_that_parts_a_patient(
    crossing: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call_entry_point: Callable[..., tuple[int, str, str]],
) -> None:
    from alseg.validate import main

    monkeypatch.chdir(tmp_path)
    settings = ("data=msd", f"data.root={crossing}", "data/splits=own", "data.preprocess=[]")
    exit_code, _, err = call_entry_point(main, *settings, PATIENTS, "workers=1", "json=report.json")
    assert exit_code == 0, err
    findings = json.loads((tmp_path / "report.json").read_text())["data_set"]
    (found,) = [f for f in findings if f["kind"] == "group in several parts"]
    assert found["level"] == "warning"
    assert found["message"].startswith(TOLD)
