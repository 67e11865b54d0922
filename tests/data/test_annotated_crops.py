"""Crops of partly annotated volumes hold annotated voxels, and whole ones are as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import (
    Compose,
    OneOf,
    Orientation,
    RandAffined,
    RandCropByLabelClassesd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandSpatialCropd,
    RandSpatialCropSamplesd,
    Spacing,
    SpatialPadd,
)
from torch import Tensor

from alseg.core.errors import DataError
from alseg.core.units import IGNORED, Region
from alseg.data.annotated_crops import collated, for_partial_labels
from alseg.data.annotation import Annotation
from alseg.data.cache import VolumeCache
from alseg.data.formats.msd import read_msd
from tests.conftest import write_msd

NONZERO = Tensor.nonzero
KEYS = ["image", "label"]
SIZE = (6, 6, 6)
CROPS: dict[str, Any] = {
    "pos neg": lambda: RandCropByPosNegLabeld(KEYS, "label", SIZE, num_samples=3),
    "pos neg on the image": lambda: RandCropByPosNegLabeld(
        KEYS, "label", SIZE, num_samples=3, image_key="image", image_threshold=0.5
    ),
    "classes": lambda: RandCropByLabelClassesd(
        KEYS, "label", SIZE, ratios=[0, 1, 2], num_classes=3, num_samples=3
    ),
    "random": lambda: RandSpatialCropd(KEYS, SIZE, random_size=False),
    "several at random": lambda: RandSpatialCropSamplesd(KEYS, SIZE, 3, random_size=False),
}


def crops_of(name: str, label: torch.Tensor, seed: int, *before: Any) -> list[dict[str, Any]]:
    """Crops of an image that numbers its voxels from 1."""
    augment = Compose(for_partial_labels([*before, CROPS[name]()]))
    augment.set_random_state(seed)
    image = torch.arange(1.0, label.numel() + 1).view(label.shape)
    crops = augment({"image": image, "label": label})
    return crops if isinstance(crops, list) else [crops]


def partial_label(seed: int, region: Region, shape: tuple[int, ...] = (12, 14, 10)) -> torch.Tensor:
    noise = torch.Generator().manual_seed(seed)
    whole = torch.randint(3, (1, *shape), generator=noise, dtype=torch.int8)
    label = torch.full_like(whole, IGNORED)
    box = (..., *(slice(*ends) for ends in region))
    label[box] = whole[box]
    return label


@pytest.mark.parametrize("name", CROPS)
def test_every_crop_of_a_region_holds_annotated_voxels(name: str) -> None:
    label = partial_label(0, ((0, 3), (11, 14), (4, 6)))
    for seed in range(10):
        for crop in crops_of(name, label, seed):
            assert crop["label"].shape == crop["image"].shape == (1, *SIZE)
            assert (crop["label"] >= 0).any()
            # image and label are of one place
            assert torch.equal(label.flatten()[crop["image"].long() - 1], crop["label"])


@pytest.mark.parametrize("name", CROPS)
@pytest.mark.parametrize("value", [0, 1, 2])
def test_a_region_of_one_class_only_is_cropped_without_a_warning(
    name: str, value: int, recwarn: pytest.WarningsRecorder
) -> None:
    label = torch.full((1, 12, 14, 10), IGNORED, dtype=torch.int8)
    label[0, 5, 5, 5] = value
    for seed in range(5):
        for crop in crops_of(name, label, seed):
            assert (crop["label"] >= 0).sum() == 1
    assert not recwarn.list


@pytest.mark.parametrize("name", CROPS)
def test_a_volume_without_annotated_voxels_is_cropped_anywhere(name: str) -> None:
    label = torch.full((1, 12, 14, 10), IGNORED, dtype=torch.int8)
    assert all((crop["label"] == IGNORED).all() for crop in crops_of(name, label, 0))


@pytest.mark.parametrize("name", CROPS)
def test_crops_of_whole_volumes_are_monais_own_to_the_bit(name: str) -> None:
    noise = torch.Generator().manual_seed(0)
    label = torch.randint(3, (1, 5, 14, 10), generator=noise, dtype=torch.uint8)
    image = torch.rand(label.shape, generator=noise)
    others = [RandFlipd(KEYS, prob=0.5), OneOf([RandFlipd(KEYS, prob=0.5, spatial_axis=1)])]
    plain = Compose([SpatialPadd(KEYS, SIZE), CROPS[name](), *others])
    ours = Compose(for_partial_labels([SpatialPadd(KEYS, SIZE), CROPS[name](), *others]))
    for seed in range(5):
        found = []
        for augment in (plain, ours):
            augment.set_random_state(seed)
            crops = augment({"image": image, "label": label})
            found.append(collated([crops]))
        assert all(torch.equal(found[0][key], found[1][key]) for key in KEYS)
        assert found[0]["label"].dtype == found[1]["label"].dtype


AROUND_VOXELS = [name for name in CROPS if "random" not in name]


def known_case(case_id: str, seed: int, shape: tuple[int, ...]) -> dict[str, Any]:
    noise = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (1, *shape), generator=noise, dtype=torch.uint8)
    return {"case_id": case_id, "label": label, "image": torch.rand(label.shape, generator=noise)}


@pytest.mark.parametrize("name", AROUND_VOXELS)
@pytest.mark.parametrize("depth", [5, 9], ids=["padded", "larger"])
def test_crops_of_known_cases_are_monais_own_to_the_bit(name: str, depth: int) -> None:
    samples = [known_case("a", 0, (depth, 14, 10)), known_case("b", 1, (depth, 9, 13))]
    samples[1]["label"][samples[1]["label"] == 1] = 0  # a class that it does not have
    chain = [SpatialPadd(KEYS, SIZE), CROPS[name]()]
    plain, ours = Compose(chain), Compose(for_partial_labels(chain))
    for seed in range(20):
        found = []
        for augment in (plain, ours):
            augment.set_random_state(seed)
            found.append(collated([augment(dict(samples[seed % 2]))]))
        assert all(torch.equal(found[0][key], found[1][key]) for key in KEYS)


@pytest.mark.parametrize("name", AROUND_VOXELS)
def test_a_volume_is_looked_through_for_its_first_crop_only(name: str) -> None:
    augment = Compose(for_partial_labels([CROPS[name]()]))
    sample = known_case("a", 0, (40, 50, 60))
    rows_read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "nonzero", lambda t: rows_read.append(t.numel()) or NONZERO(t))
        patch.setattr(torch, "nonzero", None)  # MONAI lists all voxels by it
        for _ in range(5):
            augment(dict(sample))
    assert rows_read == 15 * [60]  # three crops a draw


def test_a_crop_behind_a_random_transform_looks_at_what_it_gets() -> None:
    flip = RandFlipd(KEYS, prob=0.5, spatial_axis=0)
    chain = [flip, CROPS["classes"]()]
    plain, ours = Compose(chain), Compose(for_partial_labels(chain))
    sample = known_case("a", 0, (9, 14, 10))
    sample["label"][:, 3:] = 0
    for seed in range(10):
        found = []
        for augment in (plain, ours):
            augment.set_random_state(seed)
            found.append(collated([augment(dict(sample))]))
        assert torch.equal(found[0]["label"], found[1]["label"])


def test_positive_and_negative_centres_have_their_shares() -> None:
    label = torch.full((1, 40, 40, 40), IGNORED, dtype=torch.int8)
    label[0, 10:30, 10:30, 10:30] = 0
    label[0, 20, 20, 20] = 1
    size = (1, 1, 1)  # the crop is its centre
    crop = RandCropByPosNegLabeld(KEYS, "label", size, pos=1, neg=3, num_samples=2000)
    augment = Compose(for_partial_labels([crop]))
    augment.set_random_state(0)
    values = torch.cat([c["label"].flatten() for c in augment({"image": label, "label": label})])
    assert set(values.tolist()) == {0, 1}
    assert float((values == 1).float().mean()) == pytest.approx(0.25, abs=0.04)


def test_random_centres_are_drawn_evenly_among_annotated_voxels() -> None:
    label = torch.full((1, 6, 6, 6), IGNORED, dtype=torch.int8)
    label[0, 2:4, 3, 4] = 0
    image = torch.arange(216).view(label.shape)
    crop = RandSpatialCropSamplesd(KEYS, (1, 1, 1), 2000, random_size=False)
    augment = Compose(for_partial_labels([crop]))
    augment.set_random_state(0)
    places = torch.cat([c["image"].flatten() for c in augment({"image": image, "label": label})])
    voxels, counts = places.unique(return_counts=True)
    assert voxels.tolist() == [2 * 36 + 3 * 6 + 4, 3 * 36 + 3 * 6 + 4]
    assert counts[0] / 2000 == pytest.approx(0.5, abs=0.05)


def test_padding_of_a_partly_annotated_volume_is_ignored() -> None:
    label = partial_label(1, ((0, 3), (0, 2), (0, 4)), shape=(3, 12, 12))
    pad = SpatialPadd(KEYS, (9, 12, 12))
    for crop in crops_of("pos neg", label, 0, pad):
        assert (crop["label"][crop["image"] == 0] == IGNORED).all()
        assert (crop["label"] >= 0).any()
    whole = torch.zeros(1, 3, 12, 12, dtype=torch.uint8)
    crops = crops_of("random", whole, 0, SpatialPadd(KEYS, (9, 12, 12)))
    assert all((crop["label"] == 0).all() for crop in crops)


def test_spatial_augmentation_moves_ignored_voxels_along() -> None:
    label = partial_label(2, ((3, 9), (3, 9), (3, 9)), shape=(12, 12, 12))
    affine = RandAffined(
        KEYS, prob=1, rotate_range=[0.3] * 3, mode=["bilinear", "nearest"], padding_mode="zeros"
    )
    augment = Compose(for_partial_labels([affine]))
    augment.set_random_state(3)
    moved = augment({"image": (label >= 0).float(), "label": label})
    assert set(moved["label"].unique().tolist()) == {-1, 0, 1, 2}
    centre = (..., slice(5, 7), slice(5, 7), slice(5, 7))
    assert (moved["label"][centre] >= 0).all()
    # where the image's own mask says outside, the label does, but for what comes from outside
    outside = (moved["image"] == 0) & (moved["label"] != 0)
    assert (moved["label"][outside] == IGNORED).all()


def test_labels_with_and_without_ignored_voxels_share_a_batch() -> None:
    whole = {"image": torch.zeros(1, 2, 2, 2), "label": torch.full((1, 2, 2, 2), 200).byte()}
    part = {"image": torch.zeros(1, 2, 2, 2), "label": -torch.ones(1, 2, 2, 2, dtype=torch.int8)}
    labels = collated([whole, [part, part]])["label"]
    assert labels[:, 0, 0, 0, 0].tolist() == [200, -1, -1]
    assert collated([whole, whole])["label"].dtype == torch.uint8


BOX = ((1, 5), (2, 7), (0, 6))


def region_cache(tmp_path: Path, preprocess: list[Any], label: np.ndarray) -> VolumeCache:
    image = np.random.default_rng(0).normal(size=label.shape).astype(np.float32)
    affine = np.diag([-1.5, 1, 2, 1])
    root = write_msd(tmp_path / "data", [image], [label], affines=[affine])
    return VolumeCache(read_msd(root), preprocess, "test", tmp_path / "cache")


def random_label(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (8, 9, 7)).astype(np.uint8)


def grids() -> list[list[Any]]:
    spacings = ([1.0, 1.0, 1.0], [3.0, 2.0, 4.0], [0.75, 0.5, 1.0])
    orientations = [[], [Orientation("RAS", labels=None)], [Orientation("PSL", labels=None)]]
    return [[*o, Spacing(s)] for o in orientations for s in spacings]


@pytest.mark.parametrize("preprocess", grids())
def test_what_lies_outside_of_a_region_is_never_read(tmp_path: Path, preprocess: list[Any]) -> None:
    label = random_label()
    cache = region_cache(tmp_path, preprocess, label)
    path = cache.task.cases["case_00"].label
    found = cache.label("case_00", path, (BOX,))
    assert found.dtype == torch.int8
    assert {-1, 0, 1} == set(found.unique().tolist())
    image = nibabel.load(path)
    inside = np.zeros(label.shape, bool)
    inside[tuple(slice(*ends) for ends in BOX)] = True
    for hidden in (0, 1, 77):  # 77 is not a class: nobody looks
        nibabel.save(
            nibabel.Nifti1Image(np.where(inside, label, hidden).astype(np.uint8), image.affine),
            path,
        )
        assert torch.equal(cache.label("case_00", path, (BOX,)), found)


@pytest.mark.parametrize("preprocess", grids())
def test_regions_that_cover_a_volume_are_its_label_to_the_bit(
    tmp_path: Path, preprocess: list[Any]
) -> None:
    cache = region_cache(tmp_path, preprocess, random_label())
    path = cache.task.cases["case_00"].label
    whole = cache.label("case_00", path)
    halves: tuple[Region, ...] = (((0, 3), (0, 9), (0, 7)), ((3, 8), (0, 9), (0, 7)))
    covered = cache.label("case_00", path, halves)
    assert covered.dtype == whole.dtype == torch.uint8
    assert torch.equal(covered, whole)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_without_preprocessing_a_region_is_the_box_itself(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    label = random_label(1)
    cache = region_cache(tmp_path_factory.mktemp("box"), [], label)
    ends = [
        sorted(data.draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))
        for n in label.shape
    ]
    (a, b), (c, d), (e, f) = ends
    region: Region = ((a, b + 1), (c, d + 1), (e, f + 1))
    expected = np.full(label.shape, IGNORED)
    box = tuple(slice(*pair) for pair in region)
    expected[box] = label[box]
    found = cache.label("case_00", cache.task.cases["case_00"].label, (region,))
    assert np.array_equal(found[0].numpy(), expected)


def test_a_region_outside_of_the_image_is_refused(tmp_path: Path) -> None:
    cache = region_cache(tmp_path, [], random_label())
    path = cache.task.cases["case_00"].label
    for region in (((0, 9), (0, 1), (0, 1)), ((-1, 2), (0, 1), (0, 1)), ((2, 2), (0, 1), (0, 1))):
        with pytest.raises(DataError, match="does not lie inside an image of"):
            cache.label("case_00", path, (region,))


def test_an_annotation_of_a_path_is_of_the_whole_volume() -> None:
    assert Annotation(Path("label.nii.gz")).regions is None
