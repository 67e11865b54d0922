"""Images in a request folder: NIfTI files, whatever the data set holds."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from alseg.data.file_types import ITK_ENDINGS
from alseg.data.formats.folder import read_folder
from alseg.data.volumes import read_header
from alseg.oracles.request_layout import lay_out_images
from tests.data.test_itk import VOXELS, write


@pytest.mark.parametrize("ending", ITK_ENDINGS)
def test_images_of_other_types_are_converted(tmp_path: Path, ending: str) -> None:
    for name, voxels in (("a", VOXELS), ("two", np.stack([VOXELS, -VOXELS], axis=-1))):
        source = tmp_path / name
        source.mkdir()
        path = write(source / f"{name}{ending}", voxels, compressed=False)
        channels = ["CT", "PET"][: 2 if name == "two" else 1]
        task = read_folder(source, ["liver"], channels)
        request = tmp_path / f"request_{name}"
        request.mkdir()
        assert lay_out_images(task, name, request) == (f"{name}.nii.gz",)
        image = nibabel.load(request / f"{name}.nii.gz")
        assert image.get_data_dtype() == np.int16
        assert np.array_equal(image.get_fdata(), voxels)
        np.testing.assert_allclose(image.affine, read_header(path).affine, atol=1e-5)


def test_nifti_images_are_linked(tmp_path: Path) -> None:
    (tmp_path / "scans" / "p").mkdir(parents=True)
    for name in ("a.nii", "p/b.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "scans" / name)
    task = read_folder(tmp_path / "scans", ["liver"])
    request = tmp_path / "request"
    request.mkdir()
    assert lay_out_images(task, "a", request) == ("a.nii",)
    assert lay_out_images(task, "p_b", request) == ("p_b.nii.gz",)
    assert (request / "p_b.nii.gz").resolve() == tmp_path / "scans" / "p" / "b.nii.gz"
