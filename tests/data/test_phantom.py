"""The phantom data set: reproducible, anatomically the right way round, written exactly once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import aff2axcodes
from scipy.ndimage import binary_erosion

from alseg.data import phantom
from alseg.data.formats.msd import read_msd
from alseg.data.headers import check_headers
from alseg.data.phantom import is_hard, write_phantom_dataset
from tests.conftest import clean_processes

Volume = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("phantom"), n_volumes=16, size=32)


def dataset_json(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    return content


def files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def load(folder: Path, index: int) -> tuple[Any, Any]:
    entry = dataset_json(folder)["training"][index]
    return nibabel.load(folder / entry["image"]), nibabel.load(folder / entry["label"])


def in_patient_frame(folder: Path, index: int) -> Volume:
    image, label = (nibabel.as_closest_canonical(nifti) for nifti in load(folder, index))
    return np.asarray(image.dataobj), np.asarray(label.dataobj)


def test_same_bytes_twice_and_other_bytes_for_another_seed(tmp_path: Path) -> None:
    first = write_phantom_dataset(tmp_path / "a", n_volumes=3, size=24, seed=5)
    again = write_phantom_dataset(tmp_path / "b", n_volumes=3, size=24, seed=5)
    other = write_phantom_dataset(tmp_path / "b", n_volumes=3, size=24, seed=6)
    assert files(first) == files(again)
    assert first.name == again.name != other.name
    image = "imagesTr/phantom_000.nii.gz"
    assert files(first)[image] != files(other)[image]


def test_a_case_does_not_depend_on_how_many_there_are(tmp_path: Path, folder: Path) -> None:
    few = files(write_phantom_dataset(tmp_path, n_volumes=3, size=32))
    many = files(folder)
    few.pop("dataset.json")
    assert len(few) == 6
    assert all(many[name] == content for name, content in few.items())


def test_it_is_an_msd_data_set(folder: Path) -> None:
    content = dataset_json(folder)
    assert content["numTraining"] == len(content["training"]) == 16
    assert content["training"][7] == {
        "image": "./imagesTr/phantom_007.nii.gz",
        "label": "./labelsTr/phantom_007.nii.gz",
    }
    task = read_msd(folder)
    assert task.channels == ("CT",)
    assert task.classes == ("background", "liver", "tumour")
    check_headers(task, task.cases, labels=True)


def test_image_and_label_share_one_grid(folder: Path) -> None:
    shapes = set()
    for index in range(16):
        image, label = load(folder, index)
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        assert image.header.get_slope_inter() == (None, None)  # stored HU, not scaled ones
        assert set(np.unique(np.asarray(label.dataobj))) <= {0, 1, 2}
        shapes.add(image.shape)
    assert len(shapes) > 8


def test_orientations_vary_and_the_liver_is_on_the_right(folder: Path) -> None:
    codes = set()
    for index in range(16):
        codes.add("".join(aff2axcodes(load(folder, index)[0].affine)))
        image, label = in_patient_frame(folder, index)
        body_right, body_front, _ = np.argwhere(image > -500).mean(axis=0)
        liver_right, liver_front, _ = np.argwhere(label > 0).mean(axis=0)
        assert liver_right > body_right + 1.0
        assert liver_front > body_front  # the spine is behind it
    assert len(codes) >= 4
    assert codes <= set(phantom.ORIENTATIONS)
    assert any(code[0] not in "RL" for code in codes)  # one with permuted axes


def test_spacing_gives_the_field_of_view(tmp_path: Path) -> None:
    wide = write_phantom_dataset(tmp_path, n_volumes=1, size=(40, 32, 24))
    image = nibabel.as_closest_canonical(load(wide, 0)[0])
    nominal = np.array(phantom.FIELD_OF_VIEW_MM) / (40, 32, 24)
    np.testing.assert_allclose(image.header.get_zooms(), nominal, rtol=0.051)
    np.testing.assert_allclose(image.shape, (40, 32, 24), rtol=0.17)  # 15% and rounding
    given = write_phantom_dataset(tmp_path, n_volumes=1, size=24, spacing_mm=(9.0, 8.0, 7.0))
    image = nibabel.as_closest_canonical(load(given, 0)[0])
    np.testing.assert_allclose(image.header.get_zooms(), (9.0, 8.0, 7.0), rtol=0.051)


def test_one_patient_at_every_voxel_size() -> None:
    """The anatomy is drawn in mm: the liver's volume barely depends on the grid."""
    litres = []
    for n in (32, 64):
        rng = np.random.default_rng([0, 3])
        spacing = (320.0 / n, 320.0 / n, 250.0 / n)
        recipe = phantom.sample_recipe(
            rng, hard=False, size=(n, n, n), spacing_mm=spacing, noise_hu=12.0, tumour_rate=1.0
        )
        _, label = phantom.render_case(recipe, rng)
        litres.append((label > 0).sum() * np.prod(recipe.spacing_mm) * 1e-6)
    assert litres[0] == pytest.approx(litres[1], rel=0.03)
    assert 0.6 < litres[1] < 2.5


def test_hounsfield_units_are_plausible(folder: Path) -> None:
    hard_cases = dataset_json(folder)["hard_cases"]
    below = []
    for index in range(16):
        image, label = in_patient_frame(folder, index)
        corner = image[:2, -2:, :]  # beside the body
        assert -1024 <= corner.mean() < -950
        assert image.max() > 250  # bone
        inner = binary_erosion(label == 1)  # away from the partial volume at 10 mm a voxel
        assert 60 < np.median(image[inner]) < 125
        if f"phantom_{index:03d}" in hard_cases:
            assert (label == 2).any()
        elif (label == 2).sum() > 20:
            below.append(np.median(image[label == 1]) - np.median(image[label == 2]))
    assert len(below) >= 4
    assert np.median(below) > 20  # a few tumours are brighter than the liver


def test_hard_cases_are_listed_and_have_the_right_share(folder: Path, tmp_path: Path) -> None:
    ids = {f"phantom_{index:03d}" for index in range(16)}
    assert set(dataset_json(folder)["hard_cases"]) <= ids
    for fraction in (0.0, 0.1, 0.25, 0.5, 1.0):
        for seed in range(5):
            for n in (16, 48, 100):
                n_hard = sum(is_hard(i, hard_fraction=fraction, seed=seed) for i in range(n))
                assert abs(n_hard - n * fraction) <= 2
    none = write_phantom_dataset(tmp_path, n_volumes=2, size=24, hard_fraction=0.0, tumour_rate=0.0)
    assert dataset_json(none)["hard_cases"] == []
    assert all(in_patient_frame(none, index)[1].max() == phantom.LIVER for index in range(2))


def test_scaled_tumours_are_larger_and_all_else_is_the_same() -> None:
    usual, large = (
        phantom.sample_recipe(
            np.random.default_rng([0, 3]), hard=False, size=(32,) * 3, spacing_mm=(10.0,) * 3,
            noise_hu=12.0, tumour_rate=1.0, tumour_scale=scale,
        )
        for scale in (1.0, 1.5)
    )  # fmt: skip
    radii = [np.array([tumour.radii_mm for tumour in r.tumours]) for r in (usual, large)]
    np.testing.assert_allclose(radii[1], 1.5 * radii[0])
    assert replace(large, tumours=usual.tumours) == usual


def test_hard_cases_are_noisier() -> None:
    noise = {}
    for hard in (False, True):
        rng = np.random.default_rng([0, 0])
        recipe = phantom.sample_recipe(
            rng, hard=hard, size=(32,) * 3, spacing_mm=(10.0,) * 3, noise_hu=12.0, tumour_rate=1.0
        )
        noise[hard] = recipe.noise_hu
        assert len(recipe.tumours) in (range(3, 8) if hard else range(1, 3))
        assert (recipe.liver_shape == "usual") is not hard
    assert 9.6 <= noise[False] <= 14.4
    assert 24.0 <= noise[True] <= 30.0


def test_a_complete_folder_is_left_alone(tmp_path: Path) -> None:
    first = write_phantom_dataset(tmp_path, n_volumes=1, size=24)
    stamps = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert write_phantom_dataset(str(tmp_path), n_volumes=1, size=(24, 24, 24)) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == stamps


def _write(root: str) -> str:
    return str(write_phantom_dataset(root, n_volumes=4, size=24))


def test_two_processes_leave_one_complete_folder(tmp_path: Path) -> None:
    with clean_processes().Pool(2) as pool:
        first, second = pool.map(_write, [str(tmp_path)] * 2, chunksize=1)
    assert first == second
    left = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert left == [Path(first)]  # no scratch folder
    assert len(files(Path(first))) == 4 * 2 + 1


def test_the_loser_of_a_race_without_locks_keeps_the_winners_folder(tmp_path: Path) -> None:
    scratch, target = tmp_path / "scratch", tmp_path / "target"
    scratch.mkdir()
    target.mkdir()
    (target / "imagesTr").mkdir()
    with pytest.raises(OSError, match="not empty"):
        phantom._publish(scratch, target)  # in the way, and no complete data set
    (target / "dataset.json").write_text("{}")
    phantom._publish(scratch, target)
    assert (target / "dataset.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("n_volumes", 0),
        ("size", 23),
        ("size", (64, 64, 20)),
        ("size", (64, 64)),
        ("hard_fraction", 1.5),
        ("hard_fraction", -0.1),
        ("hard_fraction", float("nan")),
        ("noise_hu", -1.0),
        ("tumour_rate", 2.0),
        ("tumour_scale", 0.0),
        ("spacing_mm", (1.0, 0.0, 1.0)),
        ("seed", -1),
    ],
)
def test_bad_parameters_are_named_before_anything_is_written(
    tmp_path: Path, parameter: str, value: Any
) -> None:
    arguments: dict[str, Any] = {parameter: value}
    with pytest.raises(ValueError, match=rf"^{parameter} is .*; it must be "):
        write_phantom_dataset(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()
