"""Volumes go to the page and drawings come back, to the voxel, whatever the grid."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from alseg.annotation_page.grid import (
    Grid,
    drawing_for_page,
    drawing_from_page,
    volume_for_page,
)
from alseg.core.errors import DataError
from tests.annotation_page.campaign import GRIDS, SHAPE, drawn

NAMES = list(GRIDS)


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_comes_back_to_the_voxel(name: str) -> None:
    grid, classes = Grid(SHAPE, GRIDS[name]), drawn(1, 4)
    assert np.array_equal(drawing_from_page(drawing_for_page(classes, grid), grid), classes)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_gets_the_closest_canonical_volume_on_a_plain_grid(
    name: str, tmp_path: Path
) -> None:
    voxels = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, GRIDS[name]), tmp_path / "image.nii.gz")
    sent = nibabel.Nifti1Image.from_bytes(volume_for_page([tmp_path / "image.nii.gz"]))
    canonical = nibabel.as_closest_canonical(nibabel.load(tmp_path / "image.nii.gz"))
    assert np.array_equal(sent.get_fdata(), canonical.get_fdata())
    spacing = np.linalg.norm(canonical.affine[:3, :3], axis=0)
    assert np.allclose(sent.affine, np.diag([*spacing, 1.0]))
    assert nibabel.aff2axcodes(sent.affine) == ("R", "A", "S")


@pytest.mark.parametrize("name", NAMES)
def test_a_voxel_of_the_drawing_lies_on_the_same_voxel_of_the_image(
    name: str, tmp_path: Path
) -> None:
    voxels = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, GRIDS[name]), tmp_path / "image.nii.gz")
    sent = nibabel.Nifti1Image.from_bytes(volume_for_page([tmp_path / "image.nii.gz"]))
    shown = np.asarray(sent.dataobj).flatten("F")  # as the page numbers them
    grid = Grid(SHAPE, GRIDS[name])
    drawing = bytearray(gzip.decompress(drawing_for_page(np.zeros(SHAPE), grid)))
    drawing[int(np.flatnonzero(shown == 123)[0])] = 3
    classes = drawing_from_page(gzip.compress(bytes(drawing)), grid)
    assert voxels[classes == 3].tolist() == [123]


def test_channels_are_shown_one_at_a_time(tmp_path: Path) -> None:
    voxels = np.stack([np.zeros(SHAPE), np.ones(SHAPE)], -1).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "image.nii.gz")
    sent = nibabel.Nifti1Image.from_bytes(volume_for_page([tmp_path / "image.nii.gz"], 1))
    assert np.array_equal(sent.get_fdata(), np.ones(SHAPE))
    assert sent.get_data_dtype() == np.int16  # half the bytes
    with pytest.raises(DataError, match="has no channel 2: it has 2"):
        volume_for_page([tmp_path / "image.nii.gz"], 2)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(bytes(int(np.prod(SHAPE)) - 1)),
        gzip.compress(bytes(int(np.prod(SHAPE)) + 1)),
        gzip.compress(bytes(2**26)),
        gzip.compress(bytes(int(np.prod(SHAPE))))[:-4],
    ],
    ids=["empty", "no gzip", "a voxel too few", "a voxel too many", "a bomb", "cut off"],
)
def test_what_is_no_drawing_of_the_image_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="the drawing"):
        drawing_from_page(content, Grid(SHAPE, np.eye(4)))
