"""Bad input through the front door: one clear sentence, exit code 2, nothing touched."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tests.conftest import Outcome, write_msd

Train = Callable[..., Outcome]

SETTINGS = [
    (["pool.initial=99"], "pool.initial is 99, but the training split has 7 volumes"),
    (["pool.initial=0"], "pool.initial is 0; it must be a whole number of at least 1"),
    (["pool.query_size=0"], "pool.query_size is 0; it must be a whole number of at least 1"),
    (["pool.rounds=0"], "pool.rounds is 0"),
    (["steps_per_round=-5"], "steps_per_round is -5; it must be a whole number of at least 1"),
    (["steps_per_round=many"], "steps_per_round is 'many'"),
    (["val_interval=0"], "val_interval is 0"),
    (["val_interval_unit=minutes"], "val_interval_unit is 'minutes'; allowed are steps, epochs"),
    (["round_start=warm"], "round_start is 'warm'; allowed are scratch, continue, continue_last"),
    (["scoring.n_passes=0"], "scoring.n_passes is 0"),
    (["scoring.gate=1.5"], "scoring.gate is 1.5; it must be null or a number from 0 to below 1"),
    (["scoring.passes=some"], "scoring.passes is 'some'; allowed are fixed, adaptive"),
    (["scoring.passes=adaptive", "scoring.error_rate=0"], "scoring.error_rate is 0"),
    (["scoring.passes=adaptive", "strategy=power_bald"], "a selector that needs every score"),
    (["scoring.passes=adaptive", "strategy=hybrid"], "compares all volumes by their features"),
    (["scoring.passes=adaptive", "uncertainty=tta"], "the passes of uncertainty=mc_dropout alone"),
    (["scoring.gate=0.01", "strategy=badge"], "strategy badge takes features of all windows"),
    (
        ["scoring.gate=0.01", "+data.inferer.buffer_steps=2"],
        "data.scoring_inferer is no plain SlidingWindowInferer",
    ),
    (["seed=-1"], "seed is -1; it must be a whole number of at least 0"),
    (["strategy=nonsense"], "Could not find 'strategy/nonsense'"),
    (["strategie=variance"], "Could not override 'strategie'"),
    (["model.dropout=0"], "set model.dropout above 0"),
    (
        ["model.dropout_placement=encoder"],
        "model.dropout_placement is 'encoder'; allowed are all, decoder, bottleneck",
    ),
    (
        ["model=segresnet", "model.dropout_placement=decoder"],
        "but SegResNet has no dropout there: use model.dropout_placement=all",
    ),
    (["data.patch_size=[33,32,32]"], "it makes [34, 32, 32] of them"),
    (
        ["model=unet_small", "data.patch_size=[36,32,32]"],
        "does not take patches of data.patch_size=[36, 32, 32]",
    ),
    (["data.num_workers=-1"], "data.num_workers is -1; it must be auto or a whole number"),
    (["data.batch_size=0"], "data.batch_size is 0; it must be a whole number of at least 1"),
    (["pictures=-1"], "pictures is -1; it must be a whole number of at least 0"),
    (["data.splits.test=0.99"], "data.splits leaves a part empty"),
    (["data.task.root=/nowhere"], "data.root is /nowhere, which is not a folder"),
    (["save_maps=maybe"], "save_maps is 'maybe'; it must be true or false"),
    (["training.learning_rate=-1", "training=adam"], "training.optimizer: Invalid learning rate"),
    (["cache_dir=/proc/nowhere"], "/proc/nowhere: No such file or directory"),
    (["trainer.precision=7"], "trainer: Precision 7 is invalid"),
    (["training.optimizer._target_=torch.optim.Nothing"], "torch.optim.Nothing"),
]


@pytest.mark.parametrize(("overrides", "message"), SETTINGS, ids=lambda v: str(v)[:40])
def test_a_bad_setting_is_told_before_training(
    train: Train, overrides: list[str], message: str
) -> None:
    run = train(*overrides)
    check(run, message)


def check(run: Outcome, message: str) -> None:
    assert run.exit_code == 2
    assert message in run.err
    assert "Traceback" not in run.err + run.out
    assert run.err.count("alseg: error:") == 1
    assert "step" not in run.out  # no training
    assert not run.folder.exists() or not any(run.folder.iterdir())


def test_there_must_be_a_run_to_resume_and_no_other_setting(train: Train, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    check(train(smoke=False, resume=nowhere), f"there is nothing to resume in {nowhere}")
    nowhere.mkdir()
    check(train(smoke=False, resume=nowhere), "it has no state.json")
    check(train("seed=7", smoke=False, resume=nowhere), "drop seed=7")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(train: Train) -> None:
    check(train("trainer=gpu"), "sees no CUDA device here; use trainer=auto or trainer=cpu")


def test_dropout_0_is_fine_for_a_strategy_that_needs_no_scores(train: Train) -> None:
    run = train("strategy=random", "model.dropout=0", "pool.rounds=2", "steps_per_round=2")
    assert run.exit_code == 0, run.err


def test_tracebacks_are_shown_on_request(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from alseg.errors import ConfigError

    monkeypatch.setenv("ALSEG_TRACEBACK", "1")
    with pytest.raises(ConfigError, match=r"pool.query_size is 0"):
        train("pool.query_size=0")


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(16, 16, 16)).astype(np.float32) for _ in range(10)]
    return write_msd(tmp_path / "blobs", images, [(i > 1).astype(np.uint8) for i in images])


def case_in(root: Path, folder: str) -> Path:
    """A case of the validation split: it is read before training in any seed."""
    from alseg.data.cases import read_msd, split_by_fraction

    splits = split_by_fraction(read_msd(root).cases, validation=0.15, test=0.25, seed=0)
    return root / folder / f"{splits.validation[0]}.nii.gz"


def overwrite(path: Path, volume: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("empty root", lambda root: (root / "dataset.json").unlink(), "holds no dataset.json"),
    ("broken json", lambda root: (root / "dataset.json").write_text("{"), "is not valid JSON"),
    ("no label", lambda root: case_in(root, "labelsTr").unlink(), "there is no file"),
    ("no image", lambda root: case_in(root, "imagesTr").unlink(), "there is no file"),
    (
        "label of another shape",
        lambda root: overwrite(case_in(root, "labelsTr"), np.zeros((16, 16, 15), np.uint8)),
        "has shape (16, 16, 15), but its image",
    ),
    (
        "label outside the classes",
        lambda root: overwrite(case_in(root, "labelsTr"), np.full((16, 16, 16), 7, np.uint8)),
        "holds the value(s) [7.0]; allowed are 0 to 1 (background, blob)",
    ),
    (
        "NaN in an image",
        lambda root: overwrite(case_in(root, "imagesTr"), np.full((16, 16, 16), np.nan)),
        "holds voxels that are NaN or infinite",
    ),
    (
        "unreadable image",
        lambda root: case_in(root, "imagesTr").write_bytes(b"text"),
        "is not a readable NIfTI file",
    ),
    (
        "truncated image",
        lambda root: case_in(root, "imagesTr").write_bytes(
            case_in(root, "imagesTr").read_bytes()[:2000]
        ),
        "is not a readable NIfTI file",
    ),
    (
        "one class",
        lambda root: (root / "dataset.json").write_text(
            json.dumps(json.loads((root / "dataset.json").read_text()) | {"labels": {"0": "b"}})
        ),
        "'labels' must number at least 2 name(s)",
    ),
]


@pytest.mark.parametrize(("damage", "message"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_bad_data_is_told_before_training(
    train: Train, blobs: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(blobs)
    run = train(f"data.task.root={blobs}", "data.patch_size=[16,16,16]", "data.preprocess=[]")
    check(run, message)
    if message.startswith(("holds no", "is not valid", "there is", "has shape", "holds the")):
        assert str(blobs) in run.err
