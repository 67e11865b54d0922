"""Images that come, go or change while a run is under way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from alseg.core.pool import Pool
from alseg.engine.image_changes import joined
from alseg.oracles.simulated import SimulatedOracle
from alseg.run.state import RunState
from tests.data.builders import write_json

N_FIRST = 8


@pytest.fixture
def data(phantoms: Path, tmp_path: Path) -> Path:
    """Eight of the twelve phantoms."""
    root = shutil.copytree(phantoms, tmp_path / "data")
    content = json.loads((root / "dataset.json").read_text())
    write_json(tmp_path / "all.json", content["training"])
    listed(root, content["training"][:N_FIRST])
    return root


def listed(root: Path, entries: list[dict]) -> None:
    """Make these entries the data set; the first validates, the second tests."""
    content = json.loads((root / "dataset.json").read_text())
    write_json(root / "dataset.json", content | {"training": entries, "numTraining": len(entries)})
    ids = [Path(entry["image"]).name.removesuffix(".nii.gz") for entry in entries]
    split = {"validation": ids[:1], "test": ids[1:2], "training": ids[2:]}
    write_json(root.parent / "split.json", split)


@pytest.fixture
def start(data: Path, train: Callable) -> Callable[[], Path]:
    def call() -> Path:
        outcome = train(
            f"data.task.root={data}",
            "data/splits=file",
            f"data.split_file={data.parent / 'split.json'}",
            "pool.rounds=2",
        )
        assert outcome.exit_code == 0, outcome.err
        return outcome.folder

    return call


def more_rounds(folder: Path) -> None:
    """Take the last round back, so that there is something to resume."""
    state = RunState.load(folder)
    n = state.finished_rounds - 1
    before = RunState(
        pool=state.pool,
        config_hash=state.config_hash,
        finished_rounds=n,
        history=state.history[:n],
        queries=state.queries,
        timings=state.timings[:n],
        hardware=state.hardware,
    )
    before.save(folder)


def test_new_cases_join_the_pool_of_a_run_whose_oracle_can_annotate_them(
    data: Path, start: Callable, train: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimulatedOracle, "annotates_unlabelled", True)
    folder = start()
    more_rounds(folder)
    listed(data, json.loads((data.parent / "all.json").read_text())[: N_FIRST + 2])
    outcome = train(resume=folder, smoke=False)
    assert outcome.exit_code == 0, outcome.err
    printed = " ".join((outcome.out + outcome.err).split())
    assert "2 new images join the pool: phantom_008, phantom_009" in printed
    pool = RunState.load(folder).pool
    assert {"phantom_008", "phantom_009"} <= {*pool.labelled, *pool.unlabelled}
    again = train(resume=folder, smoke=False)
    assert "join the pool" not in again.out + again.err


def test_new_cases_are_refused_in_a_simulation(
    data: Path, start: Callable, train: Callable
) -> None:
    folder = start()
    listed(data, json.loads((data.parent / "all.json").read_text())[: N_FIRST + 1])
    outcome = train(resume=folder, smoke=False)
    assert outcome.exit_code == 2
    assert "1 are new (phantom_008)" in outcome.err


def test_changed_and_removed_images_are_named(data: Path, start: Callable, train: Callable) -> None:
    folder = start()
    image = data / "imagesTr" / "phantom_004.nii.gz"
    os.utime(image, (1, 1))  # another date is no change
    assert train(resume=folder, smoke=False).exit_code == 0
    content = image.read_bytes()
    nifti = nibabel.load(image)
    nibabel.save(nibabel.Nifti1Image(np.zeros(nifti.shape, np.int16), nifti.affine), image)
    outcome = train(resume=folder, smoke=False)
    assert outcome.exit_code == 2
    assert "1 image of" in outcome.err
    assert "changed after the run had started: phantom_004" in outcome.err
    image.write_bytes(content)
    assert train(resume=folder, smoke=False).exit_code == 0
    entries = json.loads((data.parent / "all.json").read_text())
    listed(data, [*entries[:4], *entries[5:N_FIRST]])
    outcome = train(resume=folder, smoke=False)
    assert outcome.exit_code == 2
    assert "1 image of the run is no longer in" in outcome.err
    assert ": phantom_004; put all back" in outcome.err


def test_a_case_that_the_split_has_moved_is_told(
    data: Path, start: Callable, train: Callable
) -> None:
    folder = start()
    ids = [f"phantom_{i:03d}" for i in range(N_FIRST)]
    split = {"validation": ids[2:3], "test": ids[1:2], "training": ids[3:]}
    write_json(data.parent / "split.json", split)
    outcome = train(resume=folder, smoke=False)
    assert outcome.exit_code == 2
    assert "phantom_002 are elsewhere in the split" in outcome.err


def test_changed_images_are_accepted_by_force(data: Path, start: Callable, train: Callable) -> None:
    folder = start()
    more_rounds(folder)
    first = json.loads((folder / "images.json").read_text())["images"]
    image = data / "imagesTr" / "phantom_004.nii.gz"
    nifti = nibabel.load(image)
    noisy = nifti.get_fdata().astype(np.int16)
    noisy[0, 0, 0] += 1
    nibabel.save(nibabel.Nifti1Image(noisy, nifti.affine), image)
    outcome = train("resume_force=true", resume=folder, smoke=False)
    assert outcome.exit_code == 0, outcome.err
    assert "resumed with changed images: phantom_004" in outcome.err + outcome.out
    now = json.loads((folder / "images.json").read_text())["images"]
    assert [case_id for case_id in first if now[case_id] != first[case_id]] == ["phantom_004"]


def test_a_lost_or_damaged_list_of_images_is_told_and_made_again(
    start: Callable, train: Callable
) -> None:
    folder = start()
    for content in ("", '{"images": 3}'):
        (folder / "images.json").write_text(content)
        outcome = train(resume=folder, smoke=False)
        assert outcome.exit_code == 0
        assert "whether images have changed" in " ".join((outcome.err + outcome.out).split())
        assert len(json.loads((folder / "images.json").read_text())["images"]) == N_FIRST


def test_joining_keeps_what_the_pool_holds() -> None:
    pool = Pool(("b",), ("a", "d"), ("b",))
    assert joined(pool, ["a", "b", "c", "d"]) == (Pool(("b",), ("a", "c", "d"), ("b",)), ["c"])
    assert joined(pool, ["a", "b", "d"]) == (pool, [])
