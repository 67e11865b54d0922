"""Labels as ITK-SNAP, 3D Slicer and scripts with SimpleITK write them, and files as they read them.

ITK-SNAP and 3D Slicer read and write through ITK; so does SimpleITK.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch

from alseg.core.units import whole
from alseg.data.volumes import write_nifti
from tests.annotation_page.campaign import (
    ASKED,
    CASES,
    GRIDS,
    SHAPE,
    Campaign,
    drawn,
    lay_out_campaign,
)


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return lay_out_campaign(tmp_path)


def itk_image(campaign: Campaign, case_id: str, voxels: np.ndarray) -> SimpleITK.Image:
    """Voxels [D, H, W] on the grid that ITK reads from the image of a case."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T))  # ITK's last axis is first
    image.CopyInformation(SimpleITK.ReadImage(str(campaign.folder / f"{case_id}.nii.gz")))
    return image


def as_nifti(campaign: Campaign, case_id: str, voxels: np.ndarray) -> None:
    SimpleITK.WriteImage(
        itk_image(campaign, case_id, voxels), campaign.folder / f"labels/final/{case_id}.nii.gz"
    )


def as_float_nifti(campaign: Campaign, case_id: str, voxels: np.ndarray) -> None:
    as_nifti(campaign, case_id, voxels.astype(np.float32))


def as_nrrd(campaign: Campaign, case_id: str, voxels: np.ndarray) -> None:
    SimpleITK.WriteImage(
        itk_image(campaign, case_id, voxels),
        campaign.folder / f"labels/final/{case_id}.nrrd",
        useCompression=True,
    )


def as_itk_snap(campaign: Campaign, case_id: str, voxels: np.ndarray) -> None:
    """What ITK-SNAP 3.6.0 wrote on a first try: 16 bits, a quaternion, and no matrix."""
    image = nibabel.Nifti1Image(
        voxels.astype(np.uint16), nibabel.load(campaign.folder / f"{case_id}.nii.gz").affine
    )
    image.set_qform(image.affine, 1)
    image.set_sform(None, 0)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, campaign.folder / f"labels/final/{case_id}.nii.gz")


def as_if_rounded(campaign: Campaign, case_id: str, voxels: np.ndarray) -> None:
    """Spacing, direction and origin with six digits, as text headers have them."""
    affine = nibabel.load(campaign.folder / f"{case_id}.nii.gz").affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    rounded = np.eye(4)
    rounded[:3, :3] = np.round(affine[:3, :3] / spacing, 6) * np.round(spacing, 6)
    rounded[:3, 3] = np.round(affine[:3, 3], 4)
    nibabel.save(
        nibabel.Nifti1Image(voxels, rounded), campaign.folder / f"labels/final/{case_id}.nii.gz"
    )


WAYS = [as_nifti, as_float_nifti, as_nrrd, as_itk_snap, as_if_rounded]


@pytest.mark.parametrize("save", WAYS, ids=lambda way: way.__name__)
def test_a_label_of_another_program_is_taken_in_voxel_for_voxel(
    campaign: Campaign, save: Callable[[Campaign, str, np.ndarray], None]
) -> None:
    for number, case_id in enumerate(ASKED):
        save(campaign, case_id, drawn(10 + number))
    answer = campaign.oracle.annotate(campaign.query)
    assert answer.pending == ()
    for number, unit in enumerate(whole(ASKED)):
        kept = nibabel.load(answer.labels[unit])
        assert np.array_equal(np.asarray(kept.dataobj), drawn(10 + number))
        image = nibabel.load(campaign.task.cases[unit.case_id].images[0])
        np.testing.assert_allclose(kept.affine, image.affine, atol=1e-3)


def test_a_nrrd_label_on_another_grid_is_refused(
    campaign: Campaign, caplog: pytest.LogCaptureFixture
) -> None:
    case_id = ASKED[0]
    label = itk_image(campaign, case_id, drawn(1))
    label.SetOrigin([x + 1 for x in label.GetOrigin()])
    SimpleITK.WriteImage(label, campaign.folder / f"labels/final/{case_id}.nrrd")
    assert case_id in {unit.case_id for unit in campaign.oracle.annotate(campaign.query).pending}
    assert f"{case_id}.nrrd has another direction or origin than" in caplog.text


def geometry(path: Path) -> tuple[tuple[float, ...], ...]:
    image = SimpleITK.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (1, 1), (2, 4), (0, 0)], ids=str)
@pytest.mark.parametrize("name", GRIDS)
def test_itk_sees_what_is_written_for_an_image_on_exactly_its_grid(
    tmp_path: Path, name: str, codes: tuple[int, int]
) -> None:
    image = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), GRIDS[name])
    image.header["qform_code"], image.header["sform_code"] = codes
    if all(codes):  # then a program may follow either of them
        image.header.set_qform(GRIDS[name], codes[0])
        image.header["qoffset_x"] += 2
    nibabel.save(image, tmp_path / "image.nii.gz")
    for file, dtype in (("proposal.nii.gz", torch.uint8), ("uncertainty.nii.gz", torch.float32)):
        write_nifti(tmp_path / file, torch.zeros(SHAPE, dtype=dtype), tmp_path / "image.nii.gz")
        assert geometry(tmp_path / file) == geometry(tmp_path / "image.nii.gz")


def test_a_label_in_the_page_begins_with_the_nrrd_that_is_there(campaign: Campaign) -> None:
    case_id = CASES[2]
    as_nrrd(campaign, case_id, drawn(5))
    opened = campaign.desk.open(campaign.request, case_id, "Ada", "tab", take_over=False)
    assert opened["begins_with"] == "label"
    assert campaign.desk.drawing(campaign.request, case_id) == campaign.drawing(case_id, drawn(5))
    campaign.desk.submit(
        campaign.request,
        case_id,
        "tab",
        60.0,
        campaign.drawing(case_id, drawn(6)),
        based_on=opened["based_on"],
        confirmed=False,
    )
    names = [path.name for path in (campaign.folder / "labels/final").iterdir()]
    assert sorted(names) == ["answers.csv", f"{case_id}.nii.gz"]
    assert np.array_equal(np.asarray(campaign.label(case_id).dataobj), drawn(6))
