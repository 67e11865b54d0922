import multiprocessing
import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import (
    Compose,
    CropForeground,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensity,
    Orientation,
    Orientationd,
    ScaleIntensityRange,
    ScaleIntensityRanged,
    Spacing,
    Spacingd,
)

from alseg.data.cases import Task, read_msd
from alseg.data.preprocess import VolumeCache
from alseg.errors import DataError
from tests.conftest import write_msd


@pytest.fixture
def task(phantoms: Path) -> Task:
    return read_msd(phantoms)


def make_cache(
    task: Task, folder: Path, *transforms: object, fingerprint: str = "f"
) -> VolumeCache:
    return VolumeCache(task, transforms, fingerprint, folder)  # type: ignore[arg-type]


def test_image_and_label_are_what_the_tutorials_pipeline_gives(task: Task, tmp_path: Path) -> None:
    """The label follows its image's grid, as when MONAI transforms both together."""
    spacing = (7.0, 6.0, 9.0)
    together = Compose(
        [
            LoadImaged(["image", "label"]),
            EnsureChannelFirstd(["image", "label"]),
            Spacingd(["image", "label"], spacing, mode=("bilinear", "nearest")),
            Orientationd(["image", "label"], "RAS", labels=None),
            ScaleIntensityRanged(["image"], -21, 189, 0, 1, clip=True),
            CropForegroundd(["image", "label"], source_key="image"),
        ]
    )
    cache = make_cache(
        task,
        tmp_path,
        Spacing(spacing, mode="bilinear"),
        Orientation("RAS", labels=None),
        ScaleIntensityRange(-21, 189, 0, 1, clip=True),
        CropForeground(),
    )
    for case in list(task.cases.values())[:6]:  # six orientations
        expected = together({"image": str(case.images[0]), "label": str(case.label)})
        torch.testing.assert_close(
            cache.image(case.id)["image"], expected["image"].as_tensor().float()
        )
        label = cache.label(case.id, case.label)
        agreement = (label == expected["label"].as_tensor()).float().mean()
        # A voxel half-way between two source voxels may go either way.
        assert agreement > 0.999, case.id
        assert label.unique().tolist() == expected["label"].unique().tolist()


def test_orientation_alone_moves_labels_exactly(task: Task, tmp_path: Path) -> None:
    cache = make_cache(task, tmp_path, Orientation("RAS", labels=None))
    for case in task.cases.values():
        canonical = nibabel.as_closest_canonical(nibabel.load(case.label))
        label = cache.label(case.id, case.label)[0].numpy()
        np.testing.assert_array_equal(label, np.asarray(canonical.dataobj))


def test_each_image_is_computed_once_and_shared(task: Task, tmp_path: Path) -> None:
    first = make_cache(task, tmp_path)
    for case in task.cases.values():
        first.label(case.id, case.label)
        first.image(case.id)
    assert sorted(first.preprocessed) == list(task.cases)
    second = make_cache(task, tmp_path)
    torch.testing.assert_close(second.image("phantom_000"), first.image("phantom_000"))
    assert second.preprocessed == []


def test_other_transforms_and_changed_files_make_new_entries(task: Task, tmp_path: Path) -> None:
    plain = make_cache(task, tmp_path).image("phantom_000")["image"]
    normal = make_cache(task, tmp_path, NormalizeIntensity(), fingerprint="g")
    assert not torch.equal(normal.image("phantom_000")["image"], plain)

    root = write_msd(
        tmp_path / "data", [np.ones((4, 4, 4), np.float32)], [np.zeros((4, 4, 4), np.uint8)]
    )
    changing = read_msd(root)
    assert make_cache(changing, tmp_path).image("case_00")["image"].max() == 1
    write_msd(root, [np.full((4, 4, 4), 2, np.float32)], [np.zeros((4, 4, 4), np.uint8)])
    assert make_cache(changing, tmp_path).image("case_00")["image"].max() == 2


def test_a_damaged_entry_is_computed_again(task: Task, tmp_path: Path) -> None:
    cache = make_cache(task, tmp_path)
    good = cache.image("phantom_000")["image"]
    (entry,) = tmp_path.glob("image-*.pt")
    entry.write_bytes(entry.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is damaged and is computed again"):
        again = cache.image("phantom_000")["image"]
    torch.testing.assert_close(again, good)


def test_a_malicious_entry_is_not_unpickled(task: Task, tmp_path: Path) -> None:
    cache = make_cache(task, tmp_path)
    cache.image("phantom_000")
    (entry,) = tmp_path.glob("image-*.pt")
    trap = tmp_path / "trap"

    class Bomb:
        def __reduce__(self) -> tuple:
            return Path.touch, (trap,)

    torch.save({"image": Bomb()}, entry)
    assert pickle.dumps(Bomb())
    with pytest.warns(UserWarning, match="is damaged"):
        cache.image("phantom_000")
    assert not trap.exists()


def _fill(root: Path, folder: Path) -> list[str]:
    cache = make_cache(read_msd(root), folder)
    for case_id in cache.task.cases:
        cache.image(case_id)
    return cache.preprocessed


def test_two_jobs_at_once_do_not_work_twice(phantoms: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as jobs:
        done = jobs.starmap(_fill, [(phantoms, tmp_path)] * 2)
    assert sorted(done[0] + done[1]) == list(read_msd(phantoms).cases)


@pytest.mark.parametrize(
    ("image", "label", "affine", "message"),
    [
        (np.nan, 0, np.eye(4), "NaN or infinite"),
        (1, 2, np.eye(4), r"value\(s\) \[2.0\]; allowed are 0 to 1 \(background, blob\)"),
        (1, -1, np.eye(4), r"value\(s\) \[-1.0\]"),
        (1, 0.5, np.eye(4), r"value\(s\) \[0.5\]"),
        (1, 1, np.diag([1, 1, 2, 1]), "has the spacing"),
    ],
)
def test_bad_voxels_and_geometry_are_told(
    tmp_path: Path, image: float, label: float, affine: np.ndarray, message: str
) -> None:
    shape = (4, 4, 4)
    root = write_msd(tmp_path / "data", [np.full(shape, image, np.float32)], [np.zeros(shape)])
    task = read_msd(root)
    case = task.cases["case_00"]
    nibabel.save(nibabel.Nifti1Image(np.full(shape, label, np.float32), affine), case.label)
    with pytest.raises(DataError, match=message):
        make_cache(task, tmp_path / "cache").label(case.id, case.label)


def test_a_transform_that_fails_names_the_file(task: Task, tmp_path: Path) -> None:
    def fail(image: object) -> object:
        raise RuntimeError("no grid")

    with pytest.raises(DataError, match=r"preprocessing .*phantom_003.nii.gz failed.*"):
        make_cache(task, tmp_path, fail).image("phantom_003")
    with pytest.raises(DataError, match="left no voxels, or non-finite"):
        make_cache(task, tmp_path, lambda image: image / 0, fingerprint="x").image("phantom_003")


def test_several_channels_in_one_file_or_in_several(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(6, 5, 4, 2)).astype(np.float32)
    label = np.zeros((6, 5, 4), np.uint8)
    root = write_msd(tmp_path / "data", [image], [label], channels=("T1", "T2"))
    loaded = make_cache(read_msd(root), tmp_path / "cache").image("case_00")["image"]
    np.testing.assert_allclose(loaded.numpy(), np.moveaxis(image, -1, 0))

    task = read_msd(root)
    paths = [tmp_path / f"{i}.nii.gz" for i in range(2)]
    for channel, path in enumerate(paths):
        nibabel.save(nibabel.Nifti1Image(image[..., channel], np.eye(4)), path)
    object.__setattr__(task.cases["case_00"], "images", tuple(paths))
    stacked = make_cache(task, tmp_path / "cache").image("case_00")["image"]
    torch.testing.assert_close(stacked, loaded)
