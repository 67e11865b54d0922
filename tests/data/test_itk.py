"""NRRD and MetaImage files: the same voxels on the same grid as NIfTI, and hostile ones refused."""

from __future__ import annotations

import gzip
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch

from alseg.core.errors import DataError
from alseg.data.cache import VolumeCache
from alseg.data.file_types import ITK_ENDINGS
from alseg.data.itk import data_file
from alseg.data.task import Case, Task
from alseg.data.volumes import read_header, read_volume, write_nifti

SHAPE = (7, 6, 5)
VOXELS = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)


def oblique() -> np.ndarray:
    """Voxels of 0.7 x 0.9 x 2.5 mm, turned about two axes."""
    a, b = 0.3, 0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array([0.7, 0.9, 2.5])
    affine[:3, 3] = [-12, 30, 7]
    return affine


def write(path: Path, voxels: np.ndarray = VOXELS, *, compressed: bool = True) -> Path:
    """Write voxels [D, H, W], or [D, H, W, C], on the oblique grid by way of ITK's own axes."""
    axes = (2, 1, 0, 3)[: voxels.ndim]
    image = SimpleITK.GetImageFromArray(voxels.transpose(axes), isVector=voxels.ndim == 4)
    affine = np.diag([-1, -1, 1, 1]) @ oblique()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).flatten().tolist())
    SimpleITK.WriteImage(image, str(path), compressed)
    return path


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("ending", ITK_ENDINGS)
def test_a_volume_is_read_as_from_nifti(tmp_path: Path, ending: str, compressed: bool) -> None:
    path = write(tmp_path / f"scan{ending}", compressed=compressed)
    nifti = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(VOXELS, oblique()), nifti)
    header, volume = read_header(path), read_volume((path,))
    assert (header.shape, header.dtype, header.findings) == (SHAPE, np.dtype(np.int16), ())
    np.testing.assert_allclose(header.affine, read_header(nifti).affine, atol=1e-5)
    expected = read_volume((nifti,))
    assert torch.equal(volume.as_tensor(), expected.as_tensor())
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)


@pytest.mark.parametrize("ending", ITK_ENDINGS)
def test_itk_and_nibabel_agree_on_a_file_that_itk_converts(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"scan{ending}")
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(tmp_path / "by_itk.nii"))
    converted = nibabel.load(tmp_path / "by_itk.nii")
    np.testing.assert_allclose(read_header(path).affine, converted.affine, atol=1e-4)
    assert np.array_equal(read_volume((path,))[0].numpy(), converted.get_fdata(dtype=np.float32))


@pytest.mark.parametrize("ending", ITK_ENDINGS)
def test_components_are_channels(tmp_path: Path, ending: str) -> None:
    both = np.stack([VOXELS, -VOXELS], axis=-1)
    path = write(tmp_path / f"scan{ending}", both)
    assert read_header(path).n_channels == 2
    assert np.array_equal(read_volume((path,)).numpy(), both.transpose(3, 0, 1, 2))


def test_channels_may_be_files_of_different_types(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(VOXELS, oblique()), tmp_path / "a_0000.nii.gz")
    paths = (tmp_path / "a_0000.nii.gz", write(tmp_path / "a_0001.mha", -VOXELS))
    assert np.array_equal(read_volume(paths).numpy(), np.stack([VOXELS, -VOXELS]))


def test_maps_lie_on_the_grid_of_the_file(tmp_path: Path) -> None:
    like = write(tmp_path / "scan.nrrd")
    write_nifti(tmp_path / "map.nii.gz", torch.from_numpy(VOXELS), like)
    written = nibabel.load(tmp_path / "map.nii.gz")
    np.testing.assert_allclose(written.affine, oblique(), atol=1e-5)
    assert (written.header["sform_code"], written.header["qform_code"]) == (1, 1)
    assert np.array_equal(written.get_fdata(), VOXELS)
    again = SimpleITK.ReadImage(str(tmp_path / "map.nii.gz"))
    source = SimpleITK.ReadImage(str(like))
    for ours, theirs in (
        (again.GetOrigin(), source.GetOrigin()),
        (again.GetDirection(), source.GetDirection()),
        (again.GetSpacing(), source.GetSpacing()),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_changed_data_file_beside_a_header_is_preprocessed_again(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.mhd", compressed=False)
    task = Task("t", tmp_path, ("CT",), ("background", "x"), {"scan": Case("scan", (path,), None)})
    cache = VolumeCache(task, [], "", tmp_path / "cache")
    assert np.array_equal(cache.image("scan")["image"][0].numpy(), VOXELS)
    write(tmp_path / "scan.mhd", -VOXELS, compressed=False)
    assert np.array_equal(cache.image("scan")["image"][0].numpy(), -VOXELS)


def nrrd(path: Path, changes: bytes, after: bytes = b"") -> Path:
    header = (
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 7 6 5\nencoding: raw\nendian: little\n"
        + changes
    )
    path.write_bytes(header + b"\n" + after)
    return path


def test_an_nrrd_file_without_a_space_has_an_unknown_orientation(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", b"", VOXELS.transpose(2, 1, 0).tobytes())
    assert [finding.kind for finding in read_header(path).findings] == ["orientation unknown"]
    assert np.array_equal(read_volume((path,))[0].numpy(), VOXELS)


@pytest.mark.parametrize(
    "named", ["/etc/passwd", "../a.raw", "LIST", "a_%02d.raw 1 5 1", "sub/a.raw", "", "missing.raw"]
)
def test_a_header_never_leads_out_of_its_folder(tmp_path: Path, named: str) -> None:
    for place in (tmp_path / "a.raw", tmp_path / "data" / "sub" / "a.raw"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(VOXELS.tobytes())
    path = tmp_path / "data" / "a.mhd"
    path.write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 7 6 5\nElementType = MET_SHORT\n"
        f"ElementDataFile = {named}\n"
    )
    for read in (read_header, lambda path: read_volume((path,)), data_file):
        with pytest.raises(DataError, match=r"a\.mhd names the data file"):
            read(path)


@pytest.mark.parametrize("field", [b"data file: /etc/passwd\n", b"DataFile: ../x.raw\n"])
def test_an_nrrd_file_holds_its_voxels_itself(tmp_path: Path, field: bytes) -> None:
    with pytest.raises(DataError, match="keeps its voxels in another file"):
        read_header(nrrd(tmp_path / "a.nrrd", field))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable"),
        (b"no image", "not a readable"),
        (b"NRRD0004\n" + b"x: y\n" * 20000, "header has no end"),
        (
            b"NRRD0004\ntype: short\ndimension: 2\nsizes: 7 6\nencoding: raw\nendian: little\n\n",
            "has 2 axes",
        ),
        (
            b"NRRD0004\ntype: short\ndimension: 3\nsizes: 70000 70000 9\nencoding: raw\n"
            b"endian: little\n\n",
            "GiB as float32",
        ),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.nrrd.*{message}"):
        read_header(path)


@pytest.mark.parametrize("ending", ITK_ENDINGS)
@pytest.mark.parametrize("compressed", [True, False])
def test_files_that_are_cut_off_are_refused(tmp_path: Path, ending: str, compressed: bool) -> None:
    path = write(tmp_path / f"scan{ending}", compressed=compressed)
    source = data_file(path) or path
    content = source.read_bytes()
    source.write_bytes(content[: len(content) - 100])
    with pytest.raises(DataError, match="scan"):
        read_volume((path,))


def test_a_bomb_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    header = (
        b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 1000 1000 1000\nencoding: gzip\n"
        b"endian: little\n\n"
    )
    path.write_bytes(header + gzip.compress(bytes(1000)))
    with pytest.raises(DataError, match="more than the file can hold"):
        read_volume((path,))


SECRET = np.full(SHAPE, 7, np.int16)  # in a file outside of the data set
META = "ObjectType = Image\nNDims = 3\nDimSize = 7 6 5\nElementType = MET_SHORT\n"
NRRD = "NRRD0005\ntype: short\ndimension: 3\nsizes: 7 6 5\nencoding: raw\nendian: little\n"
LOCAL = "ElementDataFile = LOCAL\n"


@pytest.mark.parametrize(
    ("ending", "header"),
    [
        # ITK minds the case of a name, and takes a colon for a separator
        (".mha", META + "elementdatafile = LOCAL\nElementDataFile = {}\n"),
        (".mha", META + "ELEMENTDATAFILE = LOCAL\nElementDataFile = {}\n"),
        (".mha", META + "ElementDataFile : a=b/../{}\n" + LOCAL),
        (".mha", META + "ElementDataFile : LIST =\n{0}\n{0}\n{0}\n{0}\n{0}\n" + LOCAL),
        # it strips spaces and tabs, and nothing else
        (".mha", META + "ElementDataFile\x0b= LOCAL\nElementDataFile = {}\n"),
        (".mha", META + "\x1cElementDataFile = LOCAL\nElementDataFile = {}\n"),
        (".mha", META + "\xa0ElementDataFile = LOCAL\nElementDataFile = {}\n"),
        (".mha", META + "\x85ElementDataFile = LOCAL\nElementDataFile = {}\n"),
        (".mha", META + "Comment =\nElementDataFile = {}\n" + LOCAL),
        (".mha", META + "Comment = a\rElementDataFile = {}\n" + LOCAL),
        # it ends a line at a carriage return
        (".nrrd", NRRD + "content: x\rdata file: {}\n\n"),
        (".nrrd", NRRD.replace("\n", "\r") + "data file: {}\r\n\n"),
        (".nrrd", "NRRD0005\rdata file: {}\n" + NRRD[9:] + "\n"),
        (".nrrd", NRRD + "\r\r\ndata file: {}\n\n"),
        (".nrrd", NRRD + " \ndata file: {}\n\n"),
        (".nrrd", NRRD + "\x85\ndatafile: {}\n\n"),
    ],
)
@pytest.mark.parametrize("named", ["../secret.raw", "/{}/secret.raw"])
def test_no_line_of_a_header_leads_elsewhere_unseen(
    tmp_path: Path, ending: str, header: str, named: str
) -> None:
    (tmp_path / "data" / "a=b").mkdir(parents=True)
    (tmp_path / "secret.raw").write_bytes(SECRET.tobytes())
    path = tmp_path / "data" / f"a{ending}"
    text = header.format(named.format(str(tmp_path)[1:])).encode("latin-1")
    path.write_bytes(text + VOXELS.transpose(2, 1, 0).tobytes())
    with suppress(DataError):  # it is refused, or gives its own voxels
        assert not (read_volume((path,))[0].numpy() == SECRET).any()


@pytest.mark.parametrize(
    ("unit", "mm"),
    [("um", 1e-3), ("µm", 1e-3), ("mm", 1.0), ("cm", 10.0), ("m", 1e3), ("furlong", 1.0)],
)
@pytest.mark.parametrize("kind", ["nrrd", "nrrd without a space", "mha"])
def test_lengths_in_another_unit_are_read_in_mm_and_told(
    tmp_path: Path, unit: str, mm: float, kind: str
) -> None:
    headers = {
        "nrrd": NRRD + "space: right-anterior-superior\nspace directions: (2,0,0) (0,3,0) (0,0,4)\n"
        f'space origin: (5,6,7)\nspace units: "{unit}" "{unit}" "{unit}"\n\n',
        "nrrd without a space": NRRD + f'spacings: 2 3 4\nunits: "{unit}" "{unit}" "{unit}"\n\n',
        "mha": META.replace("ElementType", f"DistanceUnits = {unit}\nElementType")
        + "TransformMatrix = -1 0 0 0 -1 0 0 0 1\nOffset = -5 -6 7\nElementSpacing = 2 3 4\n"
        + LOCAL,
    }
    path = tmp_path / f"a.{kind.split()[0]}"
    path.write_bytes(headers[kind].encode() + VOXELS.transpose(2, 1, 0).tobytes())
    header = read_header(path)
    np.testing.assert_allclose(header.spacing_mm, np.array([2, 3, 4]) * mm)
    if kind != "nrrd without a space":
        np.testing.assert_allclose(header.affine[:3, 3], np.array([5, 6, 7]) * mm)
    told = [finding.kind for finding in header.findings]
    assert ("unit" in told) == (unit != "mm")


def test_a_unit_for_each_axis_is_refused(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", b'spacings: 1 1 1\nunits: "mm" "mm" "um"\n')
    with pytest.raises(DataError, match=r"a\.nrrd gives lengths in mm, um; one unit is needed"):
        read_header(path)


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", "3D-left-handed"])
def test_a_space_without_names_of_axes_is_an_unknown_orientation(
    tmp_path: Path, space: str
) -> None:
    space_of = f"space: {space}\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n".encode()
    path = nrrd(tmp_path / "a.nrrd", space_of, VOXELS.transpose(2, 1, 0).tobytes())
    assert [finding.kind for finding in read_header(path).findings] == ["orientation unknown"]


def test_what_a_metaimage_says_of_intensities_and_links_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere.raw").write_bytes(VOXELS.transpose(2, 1, 0).tobytes())
    (tmp_path / "data" / "a.raw").symlink_to(tmp_path / "elsewhere.raw")
    path = tmp_path / "data" / "a.mhd"
    path.write_text(
        META + "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementToIntensityFunctionSlope = 2\n"
        "ElementDataFile = a.raw\n"
    )
    scaled, link = read_header(path).findings
    assert (scaled.kind, link.kind) == ("intensities", "links")
    assert str(tmp_path / "elsewhere.raw") in link.message
    assert np.array_equal(read_volume((path,))[0].numpy(), VOXELS)
