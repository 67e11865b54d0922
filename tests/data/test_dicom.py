"""DICOM series become NIfTI files on the right grid with the right intensities, or are refused."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

from alseg.data import dicom
from alseg.data.dicom import import_dicom
from alseg.data.formats.folder import read_folder

SHAPE = (12, 10, 6)  # columns, rows, slices
STORED = np.random.default_rng(0).integers(0, 3000, SHAPE).astype(np.uint16)
SALT = b"0" * 32
NAME = "Doe^Jane"
TURNED = [np.cos(0.3), np.sin(0.3), 0.0, -np.sin(0.3) * np.cos(0.2), np.cos(0.3) * np.cos(0.2)]
OBLIQUE = [*TURNED, np.sin(0.2)]
STRAIGHT = [1.0, 0, 0, 0, 1, 0]


def header(uid: str, index: int, **changes: object) -> FileDataset:
    """A slice of a CT series, without voxels."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = changes.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    slice_ = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    usual: dict = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": uid,
        "StudyInstanceUID": "1.2.3",
        "PatientID": "DOE-1970",
        "PatientName": NAME,
        "SeriesDescription": f"thorax of {NAME}",
        "Modality": "CT",
        "InstanceNumber": index + 1,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    }
    for name, value in (usual | changes).items():
        if value is not None:
            setattr(slice_, name, value)
    return slice_


def write_series(
    folder: Path,
    *,
    stored: np.ndarray = STORED,
    turn: list[float] = STRAIGHT,
    distance: float = 2.5,
    shift: float = 0.0,
    without: tuple[int, ...] = (),
    uid: str | None = None,
    prefix: str = "a",
    **changes: object,
) -> Path:
    """Write slices [columns, rows, slices] as files whose order says nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or generate_uid()
    right, down = np.array(turn[:3]), np.array(turn[3:])
    normal = np.cross(right, down)
    for index in set(range(stored.shape[2])) - set(without):
        position = np.array([-30.0, 12, 40]) + index * (distance * normal + shift * down)
        slice_ = header(uid, index, **changes)
        usual: dict = {
            "ImagePositionPatient": [f"{x:.6f}" for x in position],
            "ImageOrientationPatient": [f"{x:.8f}" for x in turn],
            "PixelSpacing": [0.9, 0.7],  # between rows, between columns
            "Rows": stored.shape[1],
            "Columns": stored.shape[0],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 0,
            "PixelData": stored[:, :, index].T.tobytes(),
        }
        for name, value in (usual | changes).items():
            if value is None and name in slice_:
                delattr(slice_, name)
            elif value is not None:
                setattr(slice_, name, value)
        slice_.save_as(folder / f"{prefix}{(7 * index) % 11:02d}.dcm", enforce_file_format=True)
    return folder


def imported(source: Path, target: Path, **settings: str) -> pd.DataFrame:
    import_dicom(source, target, salt=SALT, **settings)
    return pd.read_csv(target / "series.csv", keep_default_na=False)


@pytest.mark.parametrize("turn", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
def test_a_series_becomes_a_volume_where_it_was(tmp_path: Path, turn: list[float]) -> None:
    source = write_series(tmp_path / NAME, turn=turn)
    (row,) = imported(source, tmp_path / "out").to_dict("records")
    assert (row["status"], row["slices"], row["spacing_mm"]) == ("imported", 6, "0.7 x 0.9 x 2.5")
    path = tmp_path / "out" / row["file"]
    image = nibabel.load(path)
    assert image.get_data_dtype() == np.int16
    assert np.array_equal(image.get_fdata(), STORED.astype(int) - 1024)  # HU
    # independently: ITK's own reader of series
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(source))
    theirs, ours = SimpleITK.ReadImage(names), SimpleITK.ReadImage(str(path))
    assert np.array_equal(*map(SimpleITK.GetArrayFromImage, (theirs, ours)))
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(ours, what)(), getattr(theirs, what)(), atol=1e-4)
    task = read_folder(tmp_path / "out", ["nodule"])
    assert task.unlabelled == [path.name.removesuffix(".nii.gz")]


def test_slope_and_intercept_of_each_slice_are_applied(tmp_path: Path) -> None:
    source = write_series(tmp_path / "pt", Modality="PT", RescaleSlope="0.5", RescaleIntercept="3")
    first = pydicom.dcmread(source / "a00.dcm")
    first.RescaleSlope = "2.25"
    first.save_as(source / "a00.dcm")
    (row,) = imported(source, tmp_path / "out").to_dict("records")
    expected = STORED * 0.5 + 3
    expected[..., 0] = STORED[..., 0] * 2.25 + 3
    image = nibabel.load(tmp_path / "out" / row["file"])
    assert (row["modality"], image.get_data_dtype()) == ("PT", np.float32)
    np.testing.assert_allclose(image.get_fdata(), expected, rtol=1e-6)


def test_nothing_that_is_written_names_the_patient(tmp_path: Path) -> None:
    write_series(tmp_path / NAME / NAME, prefix=NAME)
    write_series(tmp_path / NAME / "again", without=(2,))
    rows = imported(tmp_path / NAME, tmp_path / "out").to_dict("records")
    assert sorted(row["status"] for row in rows) == ["imported", "refused"]
    assert len({row["patient"] for row in rows}) == 1
    secrets = (b"Doe", b"Jane", b"DOE", b"1970", b"thorax", b"1.2.3")
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        content = gzip.decompress(content)[:400] if path.suffix == ".gz" else content
        assert not [secret for secret in secrets if secret in content + path.name.encode()]
    other = tmp_path / "other"
    import_dicom(tmp_path / NAME, other, salt=b"1" * 32)
    assert not {p.name for p in other.glob("*.gz")} & {p.name for p in (tmp_path / "out").iterdir()}


def test_plain_ids_are_kept_if_asked(tmp_path: Path) -> None:
    source = write_series(tmp_path / "src", PatientID="../../Doe, 1970")
    (row,) = imported(source, tmp_path / "out", patient_ids="plain").to_dict("records")
    assert (row["patient"], row["description"]) == ("../../Doe, 1970", f"thorax of {NAME}")
    assert row["source"] == str(source)
    assert row["file"].startswith("Doe-1970_CT_")


def test_the_users_salt_is_kept_outside_and_serves_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    salt = dicom.own_salt()
    path = tmp_path / "home" / "alseg" / "dicom_salt"
    assert (len(salt), path.stat().st_mode & 0o777) == (64, 0o600)
    assert dicom.own_salt() == salt


def test_two_series_in_one_folder_and_files_of_other_kinds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_series(tmp_path / "src")
    write_series(source, prefix="b", stored=STORED[:, :, :4], PatientID="SMITH")
    (source / "notes.txt").write_text("no DICOM")
    (source / "cut.dcm").write_bytes((source / "a00.dcm").read_bytes()[:150])
    copy = source / "copy"  # the same slice once more
    copy.mkdir()
    (copy / "a00.dcm").write_bytes((source / "a00.dcm").read_bytes())
    rows = imported(source, tmp_path / "out").to_dict("records")
    assert sorted((row["slices"], row["status"]) for row in rows) == [
        (4, "imported"),
        (6, "imported"),
    ]
    assert len({row["patient"] for row in rows}) == 2
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{source / 'cut.dcm'} is a damaged DICOM file" in printed
    assert "2 files are not DICOM" in printed


def rgb() -> dict[str, object]:
    pixels = np.zeros((10, 12, 3), np.uint8).tobytes()
    return {
        "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0,
        "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": pixels,
    }  # fmt: skip


def frames() -> dict[str, object]:
    return {
        "SOPClassUID": EnhancedCTImageStorage, "NumberOfFrames": 6,
        "PixelData": STORED.transpose(2, 1, 0).tobytes(), "ImagePositionPatient": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"without": (3,)}, "not evenly spaced: most are 2.5 mm apart, and 1 pair up to 5 mm"),
        ({"shift": 0.5}, "shifted against each other by 11.3 degrees, as with a tilted gantry"),
        ({"distance": 0.0}, "lie at the place of another one"),
        ({"stored": STORED[:, :, :1]}, "it holds one slice"),
        (rgb(), "it holds colours (RGB)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "it holds colours (PALETTE COLOR)"),
        (frames(), "several frames in a file (Enhanced CT Image Storage)"),
        (
            {"SOPClassUID": RTStructureSetStorage, "PixelData": None, "Rows": None},
            "it holds no images, but objects of the kind RT Structure Set Storage",
        ),
        ({"ImagePositionPatient": None}, "no place in space (CT Image Storage without ImagePos"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not at right angles"),
        ({"PixelSpacing": [0, 0]}, "different pixel spacings"),
        ({"PixelData": b"\0\0"}, "a slice of it is cut off: it holds fewer voxels"),
    ],
)
def test_what_is_no_volume_is_refused_with_the_reason(
    tmp_path: Path, settings: dict, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_series(tmp_path / "src", **settings)
    (row,) = imported(source, tmp_path / "out").to_dict("records")
    assert (row["status"], row["file"]) == ("refused", "")
    assert reason in row["reason"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["series.csv"]
    assert "1 refused" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "turned against each other"),
        ({"PixelSpacing": [0.9, 0.8]}, "different pixel spacings"),
        ({"Rows": 9}, "different numbers of rows or columns"),
        ({"ImagePositionPatient": [-30, 12, 41]}, "not evenly spaced"),
        ({"ImagePositionPatient": [-25, 12, 45]}, "do not lie on a line"),
    ],
)
def test_one_odd_slice_is_enough(tmp_path: Path, changes: dict, reason: str) -> None:
    source = write_series(tmp_path / "src")
    path = source / "a03.dcm"  # the third slice of six
    odd = pydicom.dcmread(path)
    for name, value in changes.items():
        setattr(odd, name, value)
    odd.save_as(path)
    (row,) = imported(source, tmp_path / "out").to_dict("records")
    assert row["status"] == "refused"
    assert reason in row["reason"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content.replace(b"-30.000000", b"-xy.000000"), "cannot be read"),
        (lambda content: content.replace(b"-30.000000", b"nan       "), "are not finite"),
        (lambda content: content[:-100], "a slice of it is cut off"),
    ],
)
def test_damaged_files_are_refused_and_never_filled_up(
    tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    source = write_series(tmp_path / "src")
    path = source / "a03.dcm"
    path.write_bytes(damage(path.read_bytes()))
    (row,) = imported(source, tmp_path / "out").to_dict("records")
    assert row["status"] == "refused"
    assert reason in row["reason"]


@pytest.mark.parametrize("index", [0, 3])  # an end of the volume, which leaves no gap
def test_a_compressed_slice_that_is_cut_off_is_not_left_out(tmp_path: Path, index: int) -> None:
    source = write_series(tmp_path / "src")
    for path in source.iterdir():
        packed = pydicom.dcmread(path)
        packed.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        packed.save_as(path)
    path = source / f"a{7 * index % 11:02d}.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    (row,) = imported(source, tmp_path / "out").to_dict("records")
    assert (row["slices"], row["status"]) == (6, "refused")
    assert "a slice of it is cut off" in row["reason"]


@pytest.mark.parametrize(
    "syntax", [pydicom.uid.RLELossless, pydicom.uid.DeflatedExplicitVRLittleEndian]
)
def test_compressed_files_give_the_same_volume(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    source = write_series(tmp_path / "src")
    for path in source.iterdir():
        packed = pydicom.dcmread(path)
        if syntax.is_compressed:
            packed.compress(syntax, generate_instance_uid=False)
        packed.file_meta.TransferSyntaxUID = syntax
        packed.save_as(path)
    (row,) = imported(source, tmp_path / "out").to_dict("records")
    assert row["status"] == "imported", row
    image = nibabel.load(tmp_path / "out" / row["file"])
    assert np.array_equal(image.get_fdata(), STORED.astype(int) - 1024)


def test_an_import_continues_and_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "src", tmp_path / "out"
    write_series(source / "1")
    write_series(source / "2")
    real, calls = dicom.read_voxels, []

    def killed(grid: dicom.Grid) -> np.ndarray:
        calls.append(grid)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(grid)

    monkeypatch.setattr(dicom, "read_voxels", killed)
    with pytest.raises(KeyboardInterrupt):
        import_dicom(source, target, salt=SALT)
    (first,) = target.glob("*.nii.gz")
    before = first.stat().st_mtime_ns
    assert len(pd.read_csv(target / "series.csv")) == 1
    rows = imported(source, target)
    assert list(rows["status"]) == ["imported", "imported"]
    assert len(calls) == 3  # the first one is not read again
    assert first.stat().st_mtime_ns == before
    write_series(source / "1", uid=pydicom.dcmread(source / "1" / "a00.dcm").SeriesInstanceUID,
                 prefix="z", stored=STORED[:, :, :2], distance=-2.5, without=(0,))  # fmt: skip
    rows = imported(source, target)
    assert sorted(rows["status"]) == ["imported", "refused"]
    assert "other slices than when it was imported" in "".join(rows["reason"])


@pytest.fixture
def command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call_entry_point: Callable[..., tuple[int, str, str]],
) -> Callable[..., tuple[int, str]]:
    from alseg.import_dicom import main

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))

    def call(*arguments: object) -> tuple[int, str]:
        exit_code, out, err = call_entry_point(main, *map(str, arguments))
        return exit_code, " ".join((out + err).split())

    return call


def test_the_command(tmp_path: Path, command: Callable) -> None:
    source, target = write_series(tmp_path / "src"), tmp_path / "out"
    exit_code, printed = command(source, target)
    assert (exit_code, "1 series imported, 0 refused; 0 files" in printed) == (0, True), printed
    assert command(source, target, "patient_ids=plain")[0] == 0
    assert "DOE-1970" in (target / "series.csv").read_text()
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((tmp_path / "nowhere", target), "there is no folder"),
        ((tmp_path / "empty", target), "holds no DICOM files (0 files"),
        ((source, source), "import into another folder"),
        ((source, target, "patient_ids=none"), "patient_ids is 'none'; allowed are hashed, plain"),
        ((source, target, "salt=x"), "setting is 'salt'; allowed are patient_ids"),
    ):
        exit_code, printed = command(*arguments)
        assert exit_code == 2
        assert message in printed


def test_a_series_that_has_changed_since_its_import_is_told(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_series(source, uid="1.2.3.4")
    (before,) = imported(source, out).to_dict("records")
    content = (out / before["file"]).read_bytes()
    for changes in ({"distance": 5.0}, {"stored": STORED + 1}, {"RescaleIntercept": 0}):
        shutil.rmtree(source)
        write_series(source, uid="1.2.3.4", **changes)
        (row,) = imported(source, out).to_dict("records")
        assert row["status"] == "refused"
        assert row["reason"] == (
            f"it has other slices than when it was imported; delete {before['file']} first"
        )
    assert (out / before["file"]).read_bytes() == content
    (out / before["file"]).unlink()
    (row,) = imported(source, out).to_dict("records")
    assert row["status"] == "imported"


def test_files_that_claim_to_be_one_slice_must_be_it(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a")
    shutil.copytree(tmp_path / "in" / "a", tmp_path / "in" / "b")
    (row,) = imported(tmp_path / "in", tmp_path / "out").to_dict("records")
    assert (row["status"], row["slices"]) == ("imported", 6)
    masked = pydicom.dcmread(tmp_path / "in" / "b" / "a00.dcm")
    masked.PixelData = bytes(len(masked.PixelData))
    masked.save_as(tmp_path / "in" / "b" / "a00.dcm")
    (row,) = imported(tmp_path / "in", tmp_path / "out").to_dict("records")
    assert row["reason"].startswith("1 of its files claim to be a slice that another file holds")


@pytest.mark.parametrize("changes", [{"PatientID": "P2"}, {"StudyInstanceUID": "1.2"}], ids=str)
def test_a_series_of_two_patients_is_refused(tmp_path: Path, changes: dict[str, str]) -> None:
    write_series(tmp_path / "in", uid="1.2.3.6", without=(3, 4, 5), prefix="a")
    write_series(tmp_path / "in", uid="1.2.3.6", without=(0, 1, 2), prefix="b", **changes)
    (row,) = imported(tmp_path / "in", tmp_path / "out").to_dict("records")
    assert row["reason"] == "its slices are of several patients or studies"


def test_no_text_of_a_header_comes_into_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_series(tmp_path / "in" / "a", PhotometricInterpretation="DOE^JANE")
    write_series(tmp_path / "in" / "b", SOPClassUID="1.2.Doe", PixelData=None, Rows=None)
    capsys.readouterr(), caplog.clear()  # of writing them
    imported(tmp_path / "in", tmp_path / "out")
    said = capsys.readouterr()
    shown = (tmp_path / "out" / "series.csv").read_text() + said.out + said.err + caplog.text
    assert "doe" not in shown.casefold()
    assert "it holds colours (unknown), not intensities" in shown
    write_series(tmp_path / "c", PatientID="P\x1b[31m")
    imported(tmp_path / "c", tmp_path / "plain", patient_ids="plain")
    assert "\x1b" not in (tmp_path / "plain" / "series.csv").read_text()
