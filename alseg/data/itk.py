"""NRRD and MetaImage files (.nrrd, .mha, .mhd), which may be broken or hostile, through SimpleITK.

Before ITK sees a file, its text header is read here: it may name other files, which are opened
only in the file's own folder, and it may declare more voxels than the file can hold. Lines and
names end where ITK's readers end them; a header in which they might end elsewhere is refused.

Sources: teem's definition of NRRD, https://teem.sourceforge.net/nrrd/format.html; MetaIO's of
MetaImage, https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import SimpleITK

from alseg.core.errors import DataError
from alseg.data.array_order import row_major
from alseg.data.file_types import ITK_ENDINGS

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's axes point to left, back and head
_MAX_HEADER = 2**16  # bytes
_MAX_RATIO = 1032  # of deflate
_LOCAL = ("LOCAL", "Local", "local")
_DATA_FILE = "ElementDataFile"  # ends the header of a MetaImage file; MetaIO minds the case
_CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # teem ends a line at a CR, wherever it is
# in which axes have a name, not only a handedness
_ANATOMICAL = {"right-anterior-superior", "left-anterior-superior", "left-posterior-superior",
               "ras", "las", "lps"}  # fmt: skip
_MM = {"nm": 1e-6, "um": 1e-3, "μm": 1e-3, "cm": 10.0, "m": 1e3}  # others are taken for mm


@dataclass(frozen=True)
class ItkHeader:
    """What an NRRD or MetaImage header says of its volume.

    Attributes:
        shape: voxels along the three axes, and the channels where there are several.
        affine: [4, 4] voxel-to-world matrix in mm, to right, front and head.
        dtype: of the stored voxels.
        has_orientation: whether the file says how its axes lie in space.
        unit: of the lengths in the file; empty where it names none.
        is_scaled: whether the file says that its voxels are to be rescaled, which ITK does not do.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: np.dtype
    has_orientation: bool
    unit: str
    is_scaled: bool


def read_itk_header(path: Path) -> ItkHeader:
    """Read a header and nothing behind it.

    Raises:
        DataError: if the file is no NRRD or MetaImage file, is not one 3D volume, or names files
            elsewhere.
    """
    fields = _fields(path)
    data_file(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    with _reading(path):
        reader.ReadImageInformation()
        kind = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
        size = reader.GetSize()
        spacing, origin = reader.GetSpacing(), reader.GetOrigin()
        direction, n_components = reader.GetDirection(), reader.GetNumberOfComponents()
    if len(size) != 3:
        raise DataError(
            f"{path} has {len(size)} axes ({size}); one 3D volume is needed, whose channels are "
            "components of its voxels or files of their own"
        )
    unit = _unit(path, fields)
    affine = _affine(spacing, origin, direction)
    affine[:3] *= _MM.get(unit, 1.0)
    return ItkHeader(
        shape=(*size, n_components) if n_components > 1 else tuple(size),
        affine=affine,
        dtype=_dtype(path, kind),
        has_orientation=_has_orientation(path, fields),
        unit=unit,
        is_scaled=_is_scaled(fields),
    )


def read_itk_voxels(path: Path) -> np.ndarray:
    """The voxels, float32 [channels, D, H, W], with the axes in the order of the header's shape.

    Raises:
        DataError: if the file cannot be read.
    """
    header = read_itk_header(path)
    _check_room(path, header)
    with _reading(path):
        voxels = SimpleITK.GetArrayFromImage(
            SimpleITK.ReadImage(str(path))
        )  # [W, H, D] or [W, H, D, C]
    if voxels.ndim == 3:
        voxels = voxels[..., None]
    return row_major(voxels.transpose(3, 2, 1, 0))


def data_file(path: Path) -> Path | None:
    """The file beside a header that holds its voxels (.mhd); None where they are in the file.

    Raises:
        DataError: if the header names a file elsewhere, a list of files, or none.
    """
    if path.suffix == ".nrrd":
        named = _fields(path).get("data file", _fields(path).get("datafile"))
        if named is not None:
            raise DataError(
                f"{path} keeps its voxels in another file ({named[:80]}); alseg reads .nrrd files "
                "that hold them"
            )
        return None
    if path.suffix not in ITK_ENDINGS:
        return None
    named = _fields(path).get(_DATA_FILE.casefold(), "")
    if named in _LOCAL:
        return None
    # a plain name: neither a folder, LIST of files, nor a pattern of numbered ones
    if not named or named != PurePath(named).name or re.search(r"[%\\\s]|^LIST", named):
        raise DataError(
            f"{path} names the data file {named[:80]!r}; it must be one file in the same folder"
        )
    if not (path.parent / named).is_file():
        raise DataError(f"{path} names the data file {named}, which is not in {path.parent}")
    return path.parent / named


def _fields(path: Path) -> dict[str, str]:
    """The text header: names in small letters, and values."""
    with _reading(path), path.open("rb") as file:
        start = file.read(_MAX_HEADER)
    is_nrrd = path.suffix == ".nrrd"
    if is_nrrd and not start.startswith(b"NRRD"):
        raise DataError(f"{path} is not a readable NRRD file: it does not begin with NRRD")
    kind = "NRRD" if is_nrrd else "MetaImage"
    fields: dict[str, str] = {}
    for line in start.split(b"\n"):
        line = line.removesuffix(b"\r")
        if is_nrrd and not line:  # the voxels follow
            return fields
        if _CONTROLS.search(line):
            break
        name, separator, value = _parted(line.decode("latin-1"), is_nrrd=is_nrrd)
        if separator:
            fields[name.casefold()] = value
        elif not is_nrrd:
            break
        if not is_nrrd and name.casefold() == _DATA_FILE.casefold():
            if name != _DATA_FILE:
                raise DataError(f"{path} has the field {name}; MetaImage calls it {_DATA_FILE}")
            return fields
    raise DataError(f"{path} is not a readable {kind} file: its header has no end")


def _parted(line: str, *, is_nrrd: bool) -> tuple[str, str, str]:
    """Name, separator and value of a field."""
    match = re.match(r"([^:]*)(:)[ =]*(.*)" if is_nrrd else r"([^:=]*)([:=])[:= \t]*(.*)", line)
    if match is None:
        return line, "", ""
    return match[1].strip(" \t"), match[2], match[3].rstrip(" \t")


def _has_orientation(path: Path, fields: dict[str, str]) -> bool:
    if path.suffix == ".nrrd":
        return fields.get("space", "").casefold().removesuffix("-time") in _ANATOMICAL
    return bool({"transformmatrix", "orientation", "rotation"} & fields.keys())


def _unit(path: Path, fields: dict[str, str]) -> str:
    """The unit of lengths; empty where the file names none.

    Raises:
        DataError: if it is not the same along all axes.
    """
    if path.suffix == ".nrrd":
        text = fields.get("space units") if "space" in fields else fields.get("units")
        units = re.findall(r'"([^"]*)"', text or "")
    else:
        units = [fields.get("distanceunits", "")]
    in_utf8 = [unit.encode("latin-1").decode("utf-8", "replace") for unit in units]
    found = {unit.strip().casefold()[:20] for unit in in_utf8} - {"", "?"}
    if len(found) > 1:
        raise DataError(f"{path} gives lengths in {', '.join(sorted(found))}; one unit is needed")
    return found.pop() if found else ""


def _is_scaled(fields: dict[str, str]) -> bool:
    """Whether a MetaImage header has a slope or an offset of intensities."""
    slope, offset = (f"elementtointensityfunction{part}" for part in ("slope", "offset"))
    with suppress(ValueError):
        return (float(fields.get(slope, 1)), float(fields.get(offset, 0))) != (1, 0)
    return True


def _affine(spacing: tuple, origin: tuple, direction: tuple) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(direction).reshape(3, 3) * np.array(spacing)
    affine[:3, 3] = origin
    return _TO_RAS @ affine


def _dtype(path: Path, kind: str) -> np.dtype:
    """The type by ITK's description, such as ``vector of 16-bit signed integer``."""
    match = re.search(r"(\d+)-bit (signed integer|unsigned integer|float)", kind)
    if match is None or "complex" in kind:
        raise DataError(f"{path} holds voxels of type {kind}; alseg reads integers and floats")
    letter = {"signed integer": "i", "unsigned integer": "u", "float": "f"}[match[2]]
    return np.dtype(f"{letter}{int(match[1]) // 8}")


def _check_room(path: Path, header: ItkHeader) -> None:
    """Refuse a file that declares more voxels than it can hold, before memory is taken for them."""
    fields, source = _fields(path), data_file(path) or path
    packed = fields.get("encoding", "raw").casefold() not in ("raw",) or (
        fields.get("compresseddata", "false").casefold() == "true"
    )
    n_bytes = int(np.prod([*header.shape], dtype=object)) * header.dtype.itemsize
    if source.stat().st_size * (_MAX_RATIO if packed else 1) < n_bytes:
        raise DataError(
            f"{source} is cut off: its header declares {n_bytes} bytes of voxels, more than the "
            "file can hold"
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Report whatever ITK may raise, without the source lines of ITK."""
    try:
        yield
    except MemoryError as error:
        raise DataError(f"{path} does not fit into memory") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].rpartition("ERROR: ")[2]
        raise DataError(f"{path} is not a readable {path.suffix} file: {reason}") from error
