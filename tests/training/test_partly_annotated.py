"""Training on regions of volumes, from label files to weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import (
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandSpatialCropd,
    Spacing,
    SpatialPadd,
)
from torch import Tensor

from alseg.core.units import Region
from alseg.data.annotation import Annotation
from alseg.data.cache import VolumeCache
from alseg.data.datamodule import PoolDataModule
from alseg.data.formats.msd import read_msd
from alseg.data.splits import Parts, Splits
from alseg.networks.committee import Committee
from alseg.training.module import SegmentationModule
from alseg.training.recipe import Recipe
from alseg.training.svgd import SteinModule
from alseg.training.trainers import make_trainer
from tests.conftest import are_equal, write_msd

KEYS, PATCH = ["image", "label"], (8, 8, 8)
SHAPE = (13, 11, 7)
BOXES: tuple[Region, ...] = (((0, 5), (2, 9), (1, 6)), ((8, 12), (0, 6), (0, 7)))
COVER: tuple[Region, ...] = (((0, 6), (0, 11), (0, 7)), ((6, 13), (0, 11), (0, 7)))
CROPS: dict[str, Callable[[], object]] = {
    "positive and negative": lambda: RandCropByPosNegLabeld(KEYS, "label", PATCH, num_samples=2),
    "random": lambda: RandSpatialCropd(KEYS, PATCH, random_size=False),
}


def write_cases(root: Path) -> Path:
    rng = np.random.default_rng(0)
    images = [rng.normal(size=SHAPE).astype(np.float32) for _ in range(3)]
    labels = [(image > 0.5).astype(np.uint8) for image in images]
    return write_msd(root, images, labels, affines=[np.diag([1.0, 1.0, 2.0, 1.0])] * 3)


def change_hidden(root: Path, regions: tuple[Region, ...], case_id: str) -> None:
    """Give all voxels of a label outside of some regions the other class."""
    path = root / "labelsTr" / f"{case_id}.nii.gz"
    image = nibabel.load(path)
    label = np.asarray(image.dataobj)
    inside = np.zeros(SHAPE, bool)
    for region in regions:
        inside[tuple(slice(*ends) for ends in region)] = True
    nibabel.save(nibabel.Nifti1Image(np.where(inside, label, 1 - label), image.affine), path)


def unet() -> torch.nn.Module:
    return UNet(3, 1, 2, channels=(4, 8), strides=(2,), dropout=0.1)


def trained(
    root: Path,
    cache: Path,
    regions: tuple[Region, ...] | None,
    crop: str = "random",
    *,
    one_dice: bool = True,
    precision: str = "32-true",
    n_particles: int = 1,
) -> dict[str, Tensor]:
    """The weights after a few steps on two cases, of which the second one has regions."""
    task = read_msd(root)
    data = PoolDataModule(
        cache=VolumeCache(task, [Spacing([1.0, 1.0, 1.0])], "1 mm", cache),
        splits=Splits(("case_00", "case_01"), ("case_02",), ("case_02",)),
        augment=[
            SpatialPadd(KEYS, PATCH),
            CROPS[crop](),
            RandFlipd(KEYS, prob=0.5),
            RandAffined(KEYS, prob=0.5, rotate_range=[0.3] * 3, mode=["bilinear", "nearest"]),
        ],
        batch_size=2,
        num_workers=0,
        base_seed=1,
    )
    paths = {case.id: case.label for case in task.cases.values()}
    data.reveal({"case_00": paths["case_00"], "case_01": Annotation(paths["case_01"], regions)})
    data.start_round(Parts(("case_00", "case_01"), ()), 1, n_steps=3)
    recipe = Recipe(
        loss=DiceCELoss(to_onehot_y=True, softmax=True, batch=one_dice),
        optimizer=partial(torch.optim.AdamW, lr=0.01),
        schedule=None,
        n_steps=3,
    )
    torch.manual_seed(0)
    network = unet() if n_particles == 1 else Committee([unet() for _ in range(n_particles)])
    kind = SegmentationModule if n_particles == 1 else SteinModule
    module = kind(network, recipe, SlidingWindowInferer(PATCH), ["blob"])
    trainer = make_trainer(
        accelerator="cpu",
        precision=precision,
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data.train_dataloader())
    return module.network.state_dict()


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("one_dice", [True, False])
def test_hidden_labels_outside_of_regions_change_no_bit_of_the_weights(
    crop: str, one_dice: bool, tmp_path: Path
) -> None:
    root = write_cases(tmp_path / "data")
    before = trained(root, tmp_path / "cache", BOXES, crop, one_dice=one_dice)
    change_hidden(root, BOXES, "case_01")
    after = trained(root, tmp_path / "cache", BOXES, crop, one_dice=one_dice)
    assert are_equal(before, after)
    # the test can fail: a voxel of a region matters
    change_hidden(root, BOXES[:1], "case_01")
    assert not are_equal(before, trained(root, tmp_path / "cache", BOXES, crop, one_dice=one_dice))


@pytest.mark.parametrize("crop", CROPS)
def test_regions_that_cover_a_volume_train_as_the_volume_does_to_the_bit(
    crop: str, tmp_path: Path
) -> None:
    root, cache = write_cases(tmp_path / "data"), tmp_path / "cache"
    whole = trained(root, cache, None, crop)
    assert are_equal(whole, trained(root, cache, COVER, crop))
    assert not are_equal(whole, trained(root, cache, BOXES, crop))


@pytest.mark.parametrize(
    "settings", [{"precision": "bf16-mixed"}, {"n_particles": 2}], ids=["bf16", "svgd"]
)
def test_other_trainings_do_not_see_hidden_labels_either(
    settings: dict[str, object], tmp_path: Path
) -> None:
    root, cache = write_cases(tmp_path / "data"), tmp_path / "cache"
    before = trained(root, cache, BOXES, **settings)  # type: ignore[arg-type]
    change_hidden(root, BOXES, "case_01")
    assert are_equal(before, trained(root, cache, BOXES, **settings))  # type: ignore[arg-type]
    assert all(value.isfinite().all() for value in before.values())


def test_a_case_of_which_nothing_is_annotated_trains_nothing(tmp_path: Path) -> None:
    root, cache = write_cases(tmp_path / "data"), tmp_path / "cache"
    before = trained(root, cache, ())
    change_hidden(root, (), "case_01")
    after = trained(root, cache, ())
    assert are_equal(before, after)
    assert all(value.isfinite().all() for value in after.values())
