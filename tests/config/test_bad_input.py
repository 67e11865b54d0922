"""Bad input by running the command: one clear sentence, exit code 2, nothing touched."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from alseg.data.splits import split_by_fraction
from tests import bad_input
from tests.bad_input import IDS, ROWS, Row
from tests.conftest import Outcome

Train = Callable[..., Outcome]
TINY = [
    "data.patch_size=[16,16,16]",
    "data.inferer.roi_size=[16,16,16]",
    "data.preprocess=[]",
    "steps_per_round=2",
    "val_interval=1",
    "pictures=0",
]


@pytest.fixture(scope="session")
def good_blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bad_input.write_blobs(tmp_path_factory.mktemp("good") / "blobs")


@pytest.fixture
def blobs(good_blobs: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good_blobs, tmp_path / "blobs")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bad_input_is_told(train: Train, blobs: Path, row: Row) -> None:
    if row.needs_user and os.geteuid() == 0:
        pytest.skip("the superuser may read and write everything")
    if row.damage is not None:
        row.damage(blobs)
    overrides = [part.replace("ROOT", str(blobs)) for part in row.overrides]
    run = train(f"data.task.root={blobs}", *TINY, *overrides)
    check(run, *row.message, exit_code=row.exit_code)


def check(run: Outcome, *message: str, exit_code: int = 2) -> None:
    assert run.exit_code == exit_code
    assert "Traceback" not in run.err + run.out
    (line,) = run.err.splitlines()  # without Hydra's preamble
    assert line.startswith("alseg: error: ")
    place = 0
    for part in message:
        assert part in line[place:], line
        place = line.index(part, place)
    assert "step" not in run.out  # no training
    assert not run.folder.exists() or not any(run.folder.iterdir())


def test_the_table_is_long_and_in_the_docs() -> None:
    assert len(ROWS) >= 40
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert bad_input.PAGE.read_text() == bad_input.page(), "run python -m tests.bad_input"


def test_unicode_and_spaces_in_paths_and_an_empty_label_work(
    train: Train, blobs: Path, tmp_path: Path
) -> None:
    bad_input.save(blobs / "labelsTr" / "case_03.nii.gz", bad_input.LABELS)  # one empty label: fine
    root = blobs.rename(tmp_path / "Hépato 肝 = [data]")
    for folder in ("imagesTr", "labelsTr"):
        (root / folder / "case_00.nii.gz").rename(root / folder / "cas é 0.nii.gz")
    dataset = root / "dataset.json"
    dataset.write_text(dataset.read_text().replace("case_00", "cas é 0"))
    run = train(
        f"data.task.root='{root}'",
        f"cache_dir='{tmp_path / 'mémoire cache'}'",
        *TINY,
        "pictures=1",
        "save_maps=true",
        folder=tmp_path / "durée 1",
    )
    assert run.exit_code == 0, run.err
    assert "cas é 0" in (run.folder / "state.json").read_text(encoding="utf-8").encode().decode(
        "unicode_escape"
    )


def test_there_must_be_a_run_to_resume(train: Train, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    check(train(smoke=False, resume=nowhere), f"there is nothing to resume in {nowhere}")
    nowhere.mkdir()
    check(train(smoke=False, resume=nowhere), "it has no state.json")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(train: Train) -> None:
    check(train("trainer=gpu"), "sees no CUDA device here; use trainer=auto or trainer=cpu")


def test_dropout_0_is_fine_for_a_strategy_that_needs_no_scores(train: Train) -> None:
    run = train("strategy=random", "model.dropout=0", "pool.rounds=2", "steps_per_round=2")
    assert run.exit_code == 0, run.err


def test_tracebacks_are_shown_on_request(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from alseg.core.errors import ConfigError

    monkeypatch.setenv("ALSEG_TRACEBACK", "1")
    with pytest.raises(ConfigError, match=r"pool.query_size is 0"):
        train("pool.query_size=0")


class Deadly:
    """Dies as by the out-of-memory killer, with the case that holds a voxel of 99."""

    def __call__(self, sample: dict) -> dict:
        if sample["image"].max() == 99:
            os.kill(os.getpid(), signal.SIGKILL)
        return sample


@pytest.mark.parametrize("what", ["Deadly", "Broken"])
def test_a_loader_process_that_ends_is_told_with_its_case(
    train: Train, blobs: Path, what: str
) -> None:
    marked = split_by_fraction(IDS, validation=0.16, test=0.24, seed=0).training[2]
    path = blobs / "imagesTr" / f"{marked}.nii.gz"
    volume = np.asarray(nibabel.load(path).dataobj).copy()
    volume[0, 0, 0] = 99
    bad_input.save(path, volume)
    run = train(
        f"data.task.root={blobs}",
        *TINY,
        "steps_per_round=12",
        "strategy=full",
        "data.num_workers=1",
        f"data.augment=[{{_target_:{__name__}.{what}}}]",
    )
    assert run.exit_code == 2
    assert "Traceback" not in run.err + run.out
    message = run.err.splitlines()[-1]
    if what == "Deadly":
        # which of them depends on where the main process was
        death = "(was killed by signal Killed|exited unexpectedly|died)"
        assert re.search(rf"{death} while it was reading {marked};", message)
    else:
        assert message == f"alseg: error: data.augment failed on the case {marked}: no 99, please"


class Broken:
    """Fails on the same case."""

    def __call__(self, sample: dict) -> dict:
        if sample["image"].max() == 99:
            raise ValueError("no 99, please")
        return sample
