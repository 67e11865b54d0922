"""However the voxels of a body are stored, what is trained on and what is exported is the same.

A body that is asymmetric along each axis is stored in all 48 orders and flips of axes, oblique and
anisotropic, and goes through every data configuration. A threshold at half its intensity is a
perfect segmenter: its Dice is 1 wherever geometry and labels are right.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from alseg.config.composition import conf_folder, instantiate
from alseg.data.cache import VolumeCache
from alseg.data.source_grid import classes_on_source_grid
from alseg.data.task import Case, Task
from alseg.data.volumes import read_header, read_volume, write_nifti
from tests.planning.builders import with_a_plan

CHOICES = sorted(path.stem for path in Path(conf_folder(), "data").glob("*.yaml"))
STORAGES = [
    (order, flips) for order in permutations(range(3)) for flips in product((1, -1), repeat=3)
]
SHAPE = (20, 18, 16)
INSIDE, OUTSIDE = 150.0, 0.0  # HU, within the windows that configurations scale by
# An exact grid: where files have the configuration's edges, resampling moves no voxel.
EDGES = {"msd": (0.8, 0.8, 3.0), "nnunet": (0.8, 0.8, 3.0), "msd_liver": (0.8, 0.8, 3.0)}
EDGES |= {"folder": (0.8, 0.8, 3.0)}
EDGES |= {choice: (0.8, 0.8, 3.0) for choice in CHOICES if choice.startswith("auto")}
EDGES |= {"phantom": (5.0, 5.0, 5.0), "msd_hippocampus": (1.0, 1.0, 1.0)}


def body() -> np.ndarray:
    """An ellipsoid off the centre of every axis, of voxels along right, front and head."""
    grid = np.meshgrid(*[np.arange(n) / n for n in SHAPE], indexing="ij")
    centre, radii = (0.35, 0.6, 0.45), (0.2, 0.25, 0.3)
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) < 1


def world(edges: tuple[float, ...], tilt: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    """The voxel-to-world matrix of the body's own axes, tilted by some degrees."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() @ np.diag(edges)
    affine[:3, 3] = (-31.0, 12.5, 400.0)
    return affine


def stored(affine: np.ndarray, order: tuple[int, ...], flips: tuple[int, ...]) -> Any:
    """The body with its axes in another order and direction, at the same place in the world."""
    as_stored = nibabel.orientations.ornt_transform(
        [[axis, flip] for axis, flip in zip(order, flips, strict=True)],
        [[0, 1], [1, 1], [2, 1]],
    )
    image = nibabel.Nifti1Image(np.where(body(), INSIDE, OUTSIDE).astype(np.float32), affine)
    return image.as_reoriented(as_stored)


@cache
def config_of(choice: str) -> Any:
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        return compose("config", [f"data={choice}"])


def preprocess_of(choice: str, edges: tuple[float, ...]) -> list[Any]:
    """The configuration's own transforms; where it has a setting for the edges, with these."""
    config = config_of(choice).copy()
    if "spacing_mm" in config.data:
        config.data.spacing_mm = list(edges)
    return list(instantiate(with_a_plan(config).data.preprocess))


def cache_of(folder: Path, image: Any, transforms: list[Any], name: str) -> VolumeCache:
    """A data set of one case."""
    paths = [folder / f"{name}_{kind}.nii.gz" for kind in ("image", "label")]
    nibabel.save(image, paths[0])
    label = (np.asarray(image.dataobj) > 0).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(label, image.affine), paths[1])
    case = Case(name, (paths[0],), paths[1])
    task = Task("body", folder, ("CT",), ("background", "body"), {name: case})
    return VolumeCache(task, transforms, "", folder / "cache")


def segmented(image: torch.Tensor) -> torch.Tensor:
    """The perfect segmenter: [1, D, H, W] to classes."""
    return (image > (image.min() + image.max()) / 2).to(torch.uint8)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * np.sum((a > 0) & (b > 0)) / (np.sum(a > 0) + np.sum(b > 0)))


def check(folder: Path, transforms: list[Any], image: Any, name: str) -> torch.Tensor:
    """Dice 1 on the grid, at least .99 in the exported map; the preprocessed image."""
    cache = cache_of(folder, image, transforms, name)
    entry, case = cache.image(name), cache.task.cases[name]
    prediction = segmented(entry["image"])
    assert dice(prediction.numpy(), cache.label(name, case.label).numpy()) == 1
    exported = folder / f"{name}_map.nii.gz"
    native = classes_on_source_grid(torch.cat([1 - prediction, prediction]), entry)
    write_nifti(exported, native, case.images[0])
    map_, label = nibabel.load(exported), nibabel.load(case.label)
    np.testing.assert_allclose(map_.affine, image.affine, atol=1e-4)
    assert dice(np.asarray(map_.dataobj), np.asarray(label.dataobj)) >= 0.99
    return entry["image"]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_configuration_is_exact_in_all_48_storages(choice: str, tmp_path: Path) -> None:
    edges = EDGES[choice]
    transforms = preprocess_of(choice, edges)
    images = [
        check(tmp_path, transforms, stored(world(edges), *storage), f"case_{index}")
        for index, storage in enumerate(STORAGES)
    ]
    assert len(images) == 48
    for image in images[1:]:
        torch.testing.assert_close(image, images[0], atol=1e-4, rtol=0)


few_examples = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
all_storages = given(
    choice=st.sampled_from(CHOICES),
    storage=st.sampled_from(STORAGES),
    tilt=st.tuples(*[st.floats(-30, 30)] * 3),
    edges=st.tuples(*[st.floats(0.5, 6)] * 3),
)


@few_examples
@all_storages
def test_oblique_and_anisotropic_storages_give_what_the_plain_one_gives(
    tmp_path: Path, choice: str, storage: Any, tilt: Any, edges: Any
) -> None:
    """With resampling, too, the order of axes in the file decides nothing."""
    transforms = preprocess_of(choice, (1.3, 1.7, 2.3))
    name = f"case_{len(list(tmp_path.iterdir()))}"
    affine = world(edges, tilt)
    plain = cache_of(tmp_path, stored(affine, *STORAGES[0]), transforms, f"{name}_plain")
    other = cache_of(tmp_path, stored(affine, *storage), transforms, name)
    expected, found = plain.image(f"{name}_plain"), other.image(name)
    torch.testing.assert_close(found["image"], expected["image"], atol=1e-3, rtol=0)
    torch.testing.assert_close(found["affine"], expected["affine"], atol=1e-3, rtol=0)


@few_examples
@all_storages
def test_maps_of_oblique_and_anisotropic_images_lie_where_the_body_is(
    tmp_path: Path, choice: str, storage: Any, tilt: Any, edges: Any
) -> None:
    image = stored(world(edges, tilt), *storage)
    check(tmp_path, preprocess_of(choice, edges), image, f"case_{len(list(tmp_path.iterdir()))}")


FIELDS = ("qform_code", "sform_code", "xyzt_units", "srow_x", "quatern_b", "qoffset_x", "pixdim")


@pytest.mark.parametrize("unit", ["mm", "micron", "meter", "unknown"])
@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (1, 4)])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_exported_maps_say_of_space_what_the_source_says(
    tmp_path: Path, kind: Any, codes: tuple[int, int], unit: str
) -> None:
    """ITK-SNAP and 3D Slicer make something else of a file without codes than nibabel does."""
    scale = {"micron": 1e3, "meter": 1e-3}.get(unit, 1)
    affine = np.diag([scale, scale, scale, 1]) @ world((0.9, 0.9, 2.0), (0, 0, 5))
    plain = stored(affine, (1, 0, 2), (-1, 1, -1))
    image = kind(np.asarray(plain.dataobj), plain.affine)
    image.set_qform(plain.affine, codes[0])
    image.set_sform(plain.affine, codes[1])
    image.header.set_xyzt_units(unit)
    path = tmp_path / "image.nii"
    nibabel.save(image, path)
    write_nifti(tmp_path / "map.nii.gz", torch.ones(image.shape, dtype=torch.uint8), path)
    source, written = nibabel.load(path), nibabel.load(tmp_path / "map.nii.gz")
    for field in FIELDS:
        ours = written.header[field][:4] if field == "pixdim" else written.header[field]
        theirs = source.header[field][:4] if field == "pixdim" else source.header[field]
        np.testing.assert_array_equal(ours, theirs, field)
    assert type(written) is kind
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, source.affine)
    np.testing.assert_allclose(sorted(read_header(path).spacing_mm), [0.9, 0.9, 2.0], rtol=1e-4)
    kinds = {finding.kind for finding in read_header(path).findings}
    assert ("orientation unknown" in kinds) == (codes == (0, 0))
    assert ("unit" in kinds) == (unit in ("micron", "meter"))


def test_a_header_that_contradicts_itself_is_told_and_read_one_way(tmp_path: Path) -> None:
    """MONAI's reader would take the voxel size of pixdim, nibabel that of the sform."""
    path = tmp_path / "image.nii.gz"
    volume = np.zeros((6, 5, 4), np.float32)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    for change, kind in (
        (lambda image: image.header.set_zooms((1.0, 1.0, 5.0)), "sform and pixdim"),
        (lambda image: image.set_qform(world((1, 1, 3)), 1), "sform and qform"),
        (lambda image: image.header.structarr["quatern_b"].fill(3), "sform and qform"),
    ):
        image = nibabel.Nifti1Image(volume, affine)
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        change(image)
        nibabel.save(image, path)
        header = read_header(path)
        assert [finding.kind for finding in header.findings] == [kind]
        np.testing.assert_allclose(header.affine, affine)
        np.testing.assert_allclose(read_volume((path,)).affine, affine)


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 1), (1, 2), (2, 1)])
def test_axes_of_one_behind_the_third_are_no_channels(tmp_path: Path, shape: tuple) -> None:
    volume = np.random.default_rng(0).normal(size=(6, 5, 4, *shape)).astype(np.float32)
    path = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
    assert read_header(path).n_channels == max(shape)
    read = read_volume((path,)).numpy()
    np.testing.assert_array_equal(read, np.moveaxis(volume.reshape(6, 5, 4, -1), -1, 0))
