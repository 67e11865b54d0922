"""Folders of DICOM series become a folder of NIfTI files, for ``data=folder``.

A series is imported only if its slices make one volume on a regular grid, by their positions:
nothing is guessed, dropped or straightened. Headers are read by pydicom; voxels by SimpleITK
(GDCM), which decodes compressed files and applies each slice's rescale slope and intercept.

Names: files, NIfTI headers and the table hold no text of the DICOM header except the modality.
Patients and series are called by a hash with a secret salt, the same in each import.
"""

from __future__ import annotations

import filecmp
import hashlib
import hmac
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import SimpleITK
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError

from alseg.core.counts import by, counted
from alseg.core.errors import AlsegError, DataError, check_choice
from alseg.data.volumes import MAX_GIB, as_int16_if_exact, read_header, read_volume, save_nifti
from alseg.system.console import say, track
from alseg.system.files import name_file_in_errors, write_atomically
from alseg.system.own_secret import own_secret
from alseg.system.text import printable

TABLE = "series.csv"
HASHED, PLAIN = "hashed", "plain"
IMPORTED, REFUSED = "imported", "refused"
_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID",
    "Modality", "SeriesDescription", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SharedFunctionalGroupsSequence", "BitsAllocated", "PixelData",
)  # fmt: skip
_OF_A_SLICE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
               "RescaleIntercept", "PixelData")  # fmt: skip
_COLOURS = {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "HSV", "ARGB", "CMYK", "YBR_FULL",
            "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"}  # fmt: skip
_SAME = 1e-3  # of direction cosines
_UNEVEN = 0.02  # of the distance between slices
_ROUNDING = 0.02  # mm, of positions in headers
_TO_RAS = np.array([-1.0, -1.0, 1.0])  # DICOM's axes point to left, back and head


@dataclass(frozen=True)
class Series:
    """The files of a DICOM series, with what their headers say.

    Attributes:
        uid: of the series.
        headers: of each file, the path in ``filename``.
        n_contradicting: files that claim to be one of these slices and are another.
    """

    uid: str
    headers: tuple[pydicom.Dataset, ...]
    n_contradicting: int = 0

    def text(self, tag: str) -> str:
        """A text of the first header, empty if it is not there."""
        return str(self.headers[0].get(tag) or "").strip()


@dataclass(frozen=True)
class Grid:
    """A volume's place in space.

    Attributes:
        files: of the slices, in the order of the third axis.
        affine: [4, 4] voxel-to-world matrix in mm, to right, front and head.
        shape: voxels along columns' index, rows' index and slices.
    """

    files: tuple[Path, ...]
    affine: np.ndarray
    shape: tuple[int, int, int]


@disable_value_validation()  # warnings quote headers; what alseg needs of them is checked here
def import_dicom(
    source: Path, target: Path, patient_ids: str = HASHED, salt: bytes | None = None
) -> pd.DataFrame:
    """Import all series in a folder and the folders in it.

    A series that has been imported before is left as it is, so that an import that was interrupted
    continues; one that has another grid by now, or other voxels in its first, middle or last slice,
    is refused.

    Args:
        source: the folder of DICOM files; it is only read.
        target: the folder of the NIfTI files and of ``series.csv``.
        patient_ids: ``hashed``, or ``plain``, which leaves patient ids, descriptions and paths.
        salt: of the hashes; None for the user's own, see ``own_salt``.

    Returns:
        The table: a row a series.

    Raises:
        AlsegError: if a folder cannot be used, or no DICOM files are found.
    """
    check_choice("patient_ids", patient_ids, (HASHED, PLAIN))
    if not source.is_dir():
        raise DataError(f"there is no folder {source}")
    if target.resolve() == source.resolve():
        raise DataError(f"{target} holds the DICOM files; import into another folder")
    with name_file_in_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    naming = Naming(own_salt() if salt is None else salt, plain=patient_ids == PLAIN)
    series, n_others = found_series(source)
    if not series:
        raise DataError(
            f"{source} holds no DICOM files ({counted(n_others, 'file')} of other kinds)"
        )
    rows: list[dict[str, Any]] = []
    try:
        for each in track(series, "importing", "series", len(series)):
            rows.append(import_series(each, target, naming))
    finally:  # what was interrupted has its rows as well
        table = pd.DataFrame(rows)
        write_atomically(target / TABLE, table.to_csv(index=False))
    report(table, [each.headers[0].filename for each in series], target, n_others)
    return table


class Naming:
    """How patients and series are called outside.

    Args:
        salt: of the hashes.
        plain: whether patients are called by their ids.
    """

    def __init__(self, salt: bytes, *, plain: bool) -> None:
        self.salt = salt
        self.plain = plain

    def hashed(self, text: str, length: int) -> str:
        """A hash that nobody can compute, or try, without the salt."""
        return hmac.new(self.salt, text.encode(), hashlib.sha256).hexdigest()[:length]

    def patient(self, series: Series) -> str:
        """The patient; one without an id is known within the study only."""
        patient_id = series.text("PatientID")
        if self.plain and patient_id:
            return patient_id
        return self.hashed(patient_id or f"study {series.text('StudyInstanceUID')}", 12)

    def file(self, series: Series) -> str:
        """The name of a series' output, which depends on nothing but the series."""
        patient = re.sub(r"[^A-Za-z0-9-]+", "-", self.patient(series)).strip("-") or "patient"
        modality = series.text("Modality")
        modality = modality if re.fullmatch(r"[A-Z]{2,8}", modality) else "OT"
        return f"{patient}_{modality}_{self.hashed(series.uid, 8)}.nii.gz"


def own_salt() -> bytes:
    """The user's salt, made at the first import: one patient has one hash in all of them."""
    return own_secret("dicom_salt")


def found_series(source: Path) -> tuple[list[Series], int]:
    """The series in a folder and in the folders in it, and the number of files that are no DICOM.

    Links to folders are not followed.
    """
    paths = [
        Path(place) / name
        for place, folders, names in os.walk(source)
        for name in sorted(names)
        if not folders.sort() and not name.startswith(".")
    ]
    by_uid: dict[str, dict[str, pydicom.Dataset]] = defaultdict(dict)
    n_others, n_contradicting = 0, Counter[str]()
    for path in track(paths, "reading headers", "file", len(paths)):
        header = read_dicom_header(path)
        if header is None:
            n_others += 1
            continue
        uid = str(header.SeriesInstanceUID)
        instance = str(header.get("SOPInstanceUID") or path)
        known = by_uid[uid].setdefault(instance, header)  # a second copy of a file is not read
        if known is not header and not is_same_slice(Path(known.filename), path):
            n_contradicting[uid] += 1
    series = [
        Series(uid, tuple(found.values()), n_contradicting[uid]) for uid, found in by_uid.items()
    ]
    return series, n_others


def is_same_slice(one: Path, other: Path) -> bool:
    """Whether two files hold the same voxels at the same place."""
    if filecmp.cmp(one, other, shallow=False):
        return True
    try:
        slices = [pydicom.dcmread(path, specific_tags=[*_OF_A_SLICE]) for path in (one, other)]
        return all(slices[0].get(tag) == slices[1].get(tag) for tag in _OF_A_SLICE)
    except Exception:  # pydicom may raise anything where a file is damaged
        return False


def read_dicom_header(path: Path) -> pydicom.Dataset | None:
    """What is needed of a header; None of a file that is no DICOM or belongs to no series.

    A file that is cut off behind its header gives a header with ``is_cut``; one that is cut off in
    it is named on the screen, as nobody knows what it was part of.
    """
    if not path.is_file():
        return None
    header = _tried(path, up_to_voxels=False)
    if isinstance(header, InvalidDicomError):
        return None
    if header is None or "PixelData" not in header:
        header = _tried(path, up_to_voxels=True)
    if not isinstance(header, pydicom.Dataset) or not (
        "SeriesInstanceUID" in header or _is_directory(header)
    ):
        say(f"{path} is a damaged DICOM file and is not imported")
        return None
    header.filename = path
    header.is_cut = "PixelData" not in header and "Rows" in header
    return None if _is_directory(header) else header


def _tried(path: Path, *, up_to_voxels: bool) -> pydicom.Dataset | InvalidDicomError | None:
    """A header without the voxels; the error where it is no DICOM; None where it is damaged.

    Where a file ends too early, pydicom may raise anything, or leave elements out.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that break the standard: checked later
            return pydicom.dcmread(
                path, defer_size=1024, stop_before_pixels=up_to_voxels, specific_tags=[*_TAGS]
            )
    except InvalidDicomError as error:
        return error
    except Exception:
        return None


def _is_directory(header: pydicom.Dataset) -> bool:
    """Whether it is a DICOMDIR, which lists other files."""
    return str(header.file_meta.get("MediaStorageSOPClassUID")) == "1.2.840.10008.1.3.10"


def import_series(series: Series, target: Path, naming: Naming) -> dict[str, Any]:
    """Import a series, or say why not: its row of the table."""
    row: dict[str, Any] = {
        "file": "",
        "patient": naming.patient(series),
        "modality": series.text("Modality"),
        "spacing_mm": "",
        "slices": len(series.headers),
        "status": REFUSED,
        "reason": "",
    }
    if naming.plain:
        row["patient"] = printable(row["patient"])
        row["description"] = printable(series.text("SeriesDescription"))
        row["source"] = printable(str(Path(series.headers[0].filename).parent))
    path = target / naming.file(series)
    try:
        grid = grid_of(series)
        edges = np.linalg.norm(grid.affine[:3, :3], axis=0)
        row["spacing_mm"] = " x ".join(f"{edge:.4g}" for edge in edges)
        if not path.exists():
            save_nifti(path, read_voxels(grid), grid.affine)
        elif not is_of_grid(path, grid):
            raise DataError(
                f"it has other slices than when it was imported; delete {path.name} first"
            )
    except AlsegError as error:
        return row | {"reason": str(error)}
    return row | {"file": path.name, "status": IMPORTED}


def grid_of(series: Series) -> Grid:
    """The grid on which the slices of a series lie.

    Raises:
        DataError: with the reason why they make no volume.
    """
    check_images(series)
    headers = series.headers
    with _refusing("positions, orientation or pixel spacing cannot be read"):
        positions = np.array([h.ImagePositionPatient for h in headers], np.float64)  # [n, 3]
        turns = np.array([h.ImageOrientationPatient for h in headers], np.float64)  # [n, 6]
        edges = np.array([h.PixelSpacing for h in headers], np.float64)  # [n, 2]
        sizes = {(int(h.Columns), int(h.Rows)) for h in headers}
    if not all(np.isfinite(values).all() for values in (positions, turns, edges)):
        raise DataError("its positions, orientation or pixel spacing are not finite")
    if len(sizes) > 1:
        raise DataError("its slices have different numbers of rows or columns")
    if np.ptp(turns, axis=0).max() > _SAME:
        raise DataError("its slices are turned against each other, as those of a localizer are")
    if np.ptp(edges, axis=0).max() > _SAME * edges.max() or edges.min() <= 0:
        raise DataError("its slices have different pixel spacings")
    right, down = turns[0, :3], turns[0, 3:]  # along a row, along a column
    lengths = np.linalg.norm([right, down], axis=1)
    if np.abs(lengths - 1).max() > _SAME or abs(right @ down) > _SAME:
        raise DataError("its rows and columns are not at right angles")
    normal = np.cross(right, down)
    order = np.argsort(positions @ normal)
    positions = positions[order]
    step = _step(positions, normal)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([right * edges[0, 1], down * edges[0, 0], step], axis=1)
    affine[:3, 3] = positions[0]
    affine[:3] *= _TO_RAS[:, None]
    shape = (*sizes.pop(), len(order))
    if 4 * np.prod([*shape], dtype=object) > MAX_GIB * 2**30:
        raise DataError(f"it has {by(shape)} voxels, more than {MAX_GIB} GiB as float32")
    return Grid(tuple(Path(headers[i].filename) for i in order), affine, shape)


def is_of_grid(path: Path, grid: Grid) -> bool:
    """Whether a file that was imported before lies on a grid and has its voxels, in three slices.

    Raises:
        DataError: if it cannot be read.
    """
    header = read_header(path)
    if header.shape != grid.shape or not np.allclose(header.affine, grid.affine, atol=1e-3):
        return False
    stored = read_volume((path,))[0].numpy()
    looked_at = {0, len(grid.files) // 2, len(grid.files) - 1}
    return all(np.array_equal(stored[..., i], read_slice(grid, i)) for i in looked_at)


def check_images(series: Series) -> None:
    """Check that the files of a series are single grey slices.

    Raises:
        DataError: with the reason why they are not.
    """
    if series.n_contradicting:
        raise DataError(
            f"{series.n_contradicting} of its files claim to be a slice that another file holds, "
            "with other voxels or at another place; remove those that are not meant"
        )
    patients = {(str(h.get("PatientID")), str(h.get("StudyInstanceUID"))) for h in series.headers}
    if len(patients) > 1:
        raise DataError("its slices are of several patients or studies")
    for header in series.headers:
        uid = pydicom.uid.UID(str(header.get("SOPClassUID", "")))
        kind = uid.name if uid in pydicom.uid.UID_dictionary else "unknown"
        stated = str(header.get("PhotometricInterpretation", ""))
        colours = stated if stated in _COLOURS else ""  # no other text of the header is shown
        if header.is_cut:
            raise DataError("a slice of it is cut off, or its voxels are of an unusual kind")
        if "PixelData" not in header or not header.get("Rows") or not header.get("Columns"):
            raise DataError(f"it holds no images, but objects of the kind {kind}")
        if int(header.get("NumberOfFrames") or 1) > 1 or "SharedFunctionalGroupsSequence" in header:
            raise DataError(
                f"it holds several frames in a file ({kind}), which is not read here; dcm2niix "
                "converts such files"
            )
        if int(header.get("SamplesPerPixel") or 1) != 1 or not colours.startswith("MONOCHROME"):
            raise DataError(f"it holds colours ({colours or 'unknown'}), not intensities")
        if not _is_whole(header):
            raise DataError("a slice of it is cut off: it holds fewer voxels than it says")
        needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        if missing := [name for name in needed if not header.get(name)]:
            raise DataError(
                f"its slices have no place in space ({kind} without {', '.join(missing)})"
            )
    if len(series.headers) < 2:
        raise DataError("it holds one slice, which is not a volume")


def _is_whole(header: pydicom.Dataset) -> bool:
    """Whether a file holds all its voxels, where they are not compressed: GDCM would not complain.

    Errors in compressed voxels show when they are decoded.
    """
    syntax = header.file_meta.TransferSyntaxUID
    pixels = header.get_item("PixelData")  # not read: only its place and its length
    if syntax.is_compressed or syntax.is_deflated or pixels is None:
        return True
    needed = int(header.Rows) * int(header.Columns) * int(header.get("BitsAllocated") or 0) // 8
    end = int(pixels.value_tell) + needed
    return bool(0 < needed <= pixels.length and end <= Path(header.filename).stat().st_size)


def _step(positions: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """From a slice to the next [3], in mm; of slices in order [n, 3], whose normal is given [3].

    Raises:
        DataError: if slices are missing, double or shifted against each other.
    """
    distances = np.diff(positions @ normal)
    usual = float(np.median(distances))
    n_double = int((distances < _ROUNDING).sum())
    if n_double or usual <= 0:
        raise DataError(
            f"{n_double} of its slices lie at the place of another one: a time series, several "
            "echoes or two scans in one series"
        )
    uneven = np.abs(distances - usual) > max(_UNEVEN * usual, _ROUNDING)
    if uneven.any():
        gap = float(distances[uneven].max())
        raise DataError(
            f"its slices are not evenly spaced: most are {usual:.4g} mm apart, and "
            f"{counted(int(uneven.sum()), 'pair')} up to {gap:.4g} mm, as where slices are missing"
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    shift = np.linalg.norm(step - (step @ normal) * normal)
    if shift * (len(positions) - 1) > max(_ROUNDING, _UNEVEN * usual):
        tilt = np.degrees(np.arctan2(shift, step @ normal))
        raise DataError(
            f"its slices are shifted against each other by {tilt:.3g} degrees, as with a tilted "
            "gantry; correct the tilt first, as dcm2niix does"
        )
    along = step @ normal * normal
    off = positions - positions[0] - np.arange(len(positions))[:, None] * along
    if np.abs(off).max() > max(_ROUNDING, _UNEVEN * usual) * 2:
        raise DataError("its slices do not lie on a line")
    return np.asarray(along)


def read_voxels(grid: Grid) -> np.ndarray:
    """The intensities [columns, rows, slices], rescaled slice by slice: int16 where that is exact.

    Raises:
        DataError: if a slice cannot be decoded.
    """
    voxels = np.empty(grid.shape, np.float32)
    for index in range(len(grid.files)):
        voxels[..., index] = read_slice(grid, index)
    if not np.isfinite(voxels).all():
        raise DataError("it holds voxels that are NaN or infinite")
    return as_int16_if_exact(voxels)


def read_slice(grid: Grid, index: int) -> np.ndarray:
    """The rescaled intensities of a slice, float32 [columns, rows].

    Raises:
        DataError: if it cannot be decoded.
    """
    with _refusing(f"slice {index + 1} of {len(grid.files)} cannot be decoded"):
        plane = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(grid.files[index])))
        return np.asarray(plane.reshape(grid.shape[1], grid.shape[0]).T, np.float32)


@contextmanager
def _refusing(why: str) -> Iterator[None]:
    """Say why a series is refused, without the paths and values in what libraries raise."""
    try:
        yield
    except MemoryError as error:
        raise DataError("it does not fit into memory") from error
    except Exception as error:
        raise DataError(why) from error


def report(table: pd.DataFrame, places: Sequence[Any], target: Path, n_others: int) -> None:
    """Say on the screen, where names do no harm, what was refused."""
    for (_, row), place in zip(table.iterrows(), places, strict=True):
        if row["status"] == REFUSED:
            say(f"refused: the series of {place}: {row['reason']}")
    counts: Mapping[str, int] = table["status"].value_counts().to_dict()
    say(
        f"{counts.get(IMPORTED, 0)} series imported, {counts.get(REFUSED, 0)} refused; "
        f"{counted(n_others, 'file is', 'files are')} not DICOM: {target / TABLE}"
    )
