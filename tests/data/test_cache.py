import contextlib
import ctypes
import gc
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
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

from alseg.core.errors import AlsegError, DataError
from alseg.data.cache import VolumeCache, axis_findings
from alseg.data.formats.msd import read_msd
from alseg.data.task import Case, Task
from alseg.system.files import read_tensors, write_tensors
from tests.conftest import clean_processes, write_msd


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


class HeapStatistics(ctypes.Structure):
    """``struct mallinfo2`` of glibc's malloc.h: ten numbers."""

    _fields_ = (("numbers", ctypes.c_size_t * 10),)


def allocated_bytes() -> int:
    """What the C library has handed out, on the heap and in large blocks of their own."""
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = HeapStatistics
    numbers = mallinfo2().numbers
    hblkhd, uordblks = numbers[4], numbers[7]
    return int(hblkhd + uordblks)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc")
def test_volumes_that_are_kept_in_memory_take_nothing_of_the_heap(tmp_path: Path) -> None:
    n_cases, shape = 60, (32, 32, 32)
    volumes = [np.full(shape, index, np.float32) for index in range(n_cases)]
    root = write_msd(tmp_path / "data", volumes, [np.zeros(shape, np.uint8)] * n_cases)
    cache = make_cache(read_msd(root), tmp_path / "cache")
    cases = list(cache.task.cases)
    for case_id in cases:
        cache.image(case_id)  # computed
    for case_id in cases[:10]:
        cache.image(case_id)  # read, and kept
    before = allocated_bytes()
    for case_id in cases[10:]:
        cache.image(case_id)
    assert allocated_bytes() - before < 50 * 1024  # of 50 volumes of 128 KiB
    for index, case_id in enumerate(cases):
        image = cache.image(case_id)["image"]
        assert image.unique().tolist() == [index]
        image += 1  # changes no other copy
        assert cache.image(case_id)["image"].unique().tolist() == [index]


def test_a_damaged_entry_is_computed_again(task: Task, tmp_path: Path) -> None:
    cache = make_cache(task, tmp_path)
    good = cache.image("phantom_000")["image"]
    (entry,) = tmp_path.glob("image-*.pt")
    entry.write_bytes(entry.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is damaged and is computed again"):
        again = cache.image("phantom_000")["image"]
    torch.testing.assert_close(again, good)


@pytest.fixture
def blobs(tmp_path: Path) -> Task:
    """Three cases of different shapes with three classes."""
    shapes = [(6, 5, 4), (5, 6, 4), (6, 5, 4)]
    images = [np.full(shape, i, np.float32) for i, shape in enumerate(shapes)]
    labels = [np.full(shape, i, np.uint8) for i, shape in enumerate(shapes)]
    classes = ("background", "liver", "tumour")
    return read_msd(write_msd(tmp_path / "data", images, labels, classes=classes))


def test_a_label_is_judged_by_the_classes_of_today(blobs: Task, tmp_path: Path) -> None:
    case = blobs.cases["case_02"]
    make_cache(blobs, tmp_path).label(case.id, case.label)
    fewer = replace(blobs, classes=("background", "liver"))
    with pytest.raises(DataError, match=r"holds \[2.0\]; allowed are 0 to 1"):
        make_cache(fewer, tmp_path).label(case.id, case.label)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_file_that_is_replaced_unseen_is_noticed(
    tmp_path: Path, ending: str, large: bool
) -> None:
    """Another content of the same size, with the same time of change."""
    side = 72 if large else 6  # 1.4 MiB uncompressed: sampled, not read whole
    rng = np.random.default_rng(0)
    path = tmp_path / f"a{ending}"
    volumes = [rng.normal(size=(side,) * 3).astype(np.float32) for _ in range(2)]
    case = Case("a", (path,), path)
    task = Task("any", tmp_path, ("MR",), ("background", "x"), {"a": case})
    seen = []
    for volume in volumes:
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
        size = path.stat().st_size
        with path.open("ab") as file:  # a gzip may be padded with zeros
            file.write(bytes(2**20 * (1 + large) - size % 2**20))
        os.utime(path, ns=(10**18, 10**18))
        seen.append(make_cache(task, tmp_path / "cache").image("a")["image"])
    assert not torch.equal(*seen)


def entries(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"{kind}-*.pt"))


def forged(path: Path, change: Callable[[dict], object]) -> None:
    """Rewrite an entry as somebody who knows its format would."""
    content = dict(read_tensors(path))
    changed = change(content)
    write_tensors(path, content if changed is None else changed)


FORGERIES: dict[str, tuple[str, Callable[[dict], object]]] = {
    "no entry": ("image", lambda entry: [1, 2]),
    "a tensor": ("image", lambda entry: torch.zeros(3)),
    "without its image": ("image", lambda entry: {"name": entry["name"]}),
    "a text": ("image", lambda entry: entry.update(image="voxels")),
    "of another type": ("image", lambda entry: entry.update(image=entry["image"].double())),
    "of another rank": ("image", lambda entry: entry.update(image=entry["image"][0])),
    "of no channel": ("image", lambda entry: entry.update(image=entry["image"][:0])),
    "without a matrix": ("image", lambda entry: entry.update(affine=torch.zeros(3, 3))),
    "without its label": ("label", lambda entry: {"name": entry["name"]}),
    "a class too many": ("label", lambda entry: entry.update(label=entry["label"] + 2)),
    "on another grid": ("label", lambda entry: entry.update(label=entry["label"][..., :-1])),
    "of wide integers": ("label", lambda entry: entry.update(label=entry["label"].long())),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_an_entry_that_is_not_what_it_should_be_is_computed_again(
    blobs: Task, tmp_path: Path, name: str
) -> None:
    kind, change = FORGERIES[name]
    cache, case = make_cache(blobs, tmp_path), blobs.cases["case_01"]
    image, label = cache.image(case.id)["image"], cache.label(case.id, case.label)
    (path,) = entries(tmp_path, kind)
    forged(path, change)
    again = make_cache(blobs, tmp_path)
    with pytest.warns(UserWarning, match="is damaged and is computed again: it "):
        found = again.label(case.id, case.label)
    torch.testing.assert_close(found, label)
    torch.testing.assert_close(again.image(case.id)["image"], image)


@pytest.mark.parametrize("kind", ["image", "label"])
def test_entries_that_were_swapped_are_computed_again(
    blobs: Task, tmp_path: Path, kind: str
) -> None:
    cache = make_cache(blobs, tmp_path)
    good = {case.id: cache.label(case.id, case.label) for case in blobs.cases.values()}
    one, other, third = entries(tmp_path, kind)
    contents = [path.read_bytes() for path in (one, other, third)]
    for path, content in zip((other, third, one), contents, strict=True):
        path.write_bytes(content)
    again = make_cache(blobs, tmp_path)
    for case in blobs.cases.values():
        with pytest.warns(UserWarning, match="it is the entry of something else"):
            found = again.label(case.id, case.label)
        torch.testing.assert_close(found, good[case.id])
        assert again.image(case.id)["image"].max() == int(case.id[-1])


def test_a_lock_that_is_a_link_changes_no_foreign_file(blobs: Task, tmp_path: Path) -> None:
    cache = make_cache(blobs, tmp_path / "cache")
    foreign = tmp_path / "foreign"
    foreign.write_text("of somebody else")
    (tmp_path / "cache").mkdir()
    key = cache.key(blobs.cases["case_00"].images)
    (tmp_path / "cache" / f"image-{key}.lock").symlink_to(foreign)
    with contextlib.suppress(OSError, AlsegError):
        cache.image("case_00")
    assert foreign.read_text() == "of somebody else"


def test_more_than_256_classes_keep_their_values(tmp_path: Path) -> None:
    label = np.arange(300, dtype=np.int16).reshape(10, 6, 5)
    classes = ("background", *(f"region {i}" for i in range(1, 300)))
    root = write_msd(
        tmp_path / "data", [np.ones(label.shape, np.float32)], [label], classes=classes
    )
    task = read_msd(root)
    case = task.cases["case_00"]
    for _ in range(2):  # computed, then read
        found = make_cache(task, tmp_path / "cache").label(case.id, case.label)
        np.testing.assert_array_equal(found[0].numpy(), label)


@pytest.mark.parametrize(
    ("edge", "pixdim", "grid"),
    [(5e-4, 1.5, "1 x 1 x 1"), (500.0, 1.5, r"3668 x 3668 x 3668 \(184 GiB"), (500.0, 0.5, "GiB")],
)
def test_a_grid_that_cannot_be_meant_is_told_with_its_numbers(
    tmp_path: Path, edge: float, pixdim: float, grid: str
) -> None:
    shape = (12, 12, 12)
    affine = np.diag([edge, edge, edge, 1])
    root = write_msd(
        tmp_path / "data", [np.ones(shape, np.float32)], [np.zeros(shape)], affines=[affine]
    )
    transforms = Orientation("RAS", labels=None), Spacing((pixdim,) * 3)
    with pytest.raises(DataError, match=rf"has 12 x 12 x 12 voxels of .* mm, .*{grid}"):
        make_cache(read_msd(root), tmp_path / "cache", *transforms).image("case_00")


def test_transforms_that_resample_along_the_axes_of_files_are_told() -> None:
    orientation, spacing = Orientation("RAS", labels=None), Spacing((1.0, 1.0, 3.0))
    assert not axis_findings([orientation, spacing])
    assert not axis_findings([Spacing((2.0, 2.0, 2.0)), orientation])
    for transforms in ([spacing], [spacing, orientation]):
        (finding,) = axis_findings(transforms)
        assert "resamples to 1 x 1 x 3 mm before it re-orients" in finding.message


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
    with clean_processes().Pool(2) as jobs:
        done = jobs.starmap(_fill, [(phantoms, tmp_path)] * 2)
    assert sorted(done[0] + done[1]) == list(read_msd(phantoms).cases)


@pytest.mark.parametrize(
    ("image", "label", "affine", "message"),
    [
        (np.nan, 0, np.eye(4), "NaN or infinite"),
        (1, 2, np.eye(4), r"holds \[2.0\]; allowed are 0 to 1 \(background, blob\)"),
        (1, -1, np.eye(4), r"holds \[-1.0\]"),
        (1, 0.5, np.eye(4), r"holds \[0.5\]"),
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

    with pytest.raises(DataError, match=r"phantom_003.nii.gz failed in function: no grid"):
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
