"""Volumes in files, which may be broken or hostile: headers first, voxels in bounded memory.

NIfTI files are read here, and what ITK reads in ``alseg.data.itk``.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.spatialimages import HeaderDataError
from torch import Tensor

from alseg.core.errors import DataError
from alseg.data.array_order import row_major
from alseg.data.file_types import ENDINGS, ITK_ENDINGS
from alseg.data.findings import Finding, in_mm, warning
from alseg.data.itk import ItkHeader, data_file, read_itk_header, read_itk_voxels
from alseg.system.files import is_within, replacing

MAX_GIB = 8  # of a file's voxels as float32: a scan of 1024 x 1024 x 2048
_MAX_DATA_OFFSET = 2**24  # bytes of header extensions; nibabel reads them all
_MAX_GZIP_RATIO = 1032  # deflate can do no more
_STEP = 2**20  # bytes that are decompressed at once
_HEADERS = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}  # type: ignore[attr-defined]
_IMAGES = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}  # type: ignore[attr-defined]
# nifti1.h: the three lowest bits of xyzt_units; files that name no unit are in mm
_UNITS = {0: ("mm", 1.0), 1: ("metres", 1e3), 2: ("mm", 1.0), 3: ("micrometres", 1e-3)}
_GEOMETRY = (
    "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
_POINTERS = (b"/annex/objects/", b"version https://git-lfs")  # of git-annex and Git LFS
_MAX_DISAGREEMENT = 0.1  # of a voxel edge, between two statements of a header


@dataclass(frozen=True)
class Header:
    """What a file's header says of its volume.

    Attributes:
        shape: voxels along each axis; an axis behind the third holds channels.
        affine: [4, 4] voxel-to-world matrix in mm, whatever unit the file has.
        dtype: of the stored voxels.
        n_bytes: of the uncompressed file.
        findings: what it leaves open, or says twice and differently.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: np.dtype
    n_bytes: int
    findings: tuple[Finding, ...]

    @property
    def n_channels(self) -> int:
        """The channels of a 3D volume, whether or not there are more axes of one; else 0."""
        further = [n for n in self.shape[3:5] if n > 1]
        if len(self.shape) not in (3, 4, 5) or len(further) > 1:
            return 0
        return further[0] if further else 1

    @property
    def spacing_mm(self) -> np.ndarray:
        """The voxel size along each axis [3], in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def read_header(path: Path) -> Header:
    """Read and check a header; of the voxels not one byte is read.

    Raises:
        DataError: if the file is none that alseg reads, or its header declares what cannot be: no
            voxels, more than ``MAX_GIB``, more than the file holds, voxels without a volume.
    """
    if not path.name.endswith(ENDINGS):
        raise DataError(f"{path} does not end in {' or '.join(ENDINGS)}, which alseg reads")
    if path.suffix in ITK_ENDINGS:
        return _read_header_with_itk(path)
    size, header = _raw_header(path)
    with reading(path):
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype = header.get_data_dtype()
        unit, mm = _UNITS.get(int(header["xyzt_units"]) % 8, ("an unknown unit", 1.0))
        affine = np.array(header.get_best_affine(), np.float64)
        affine[:3] *= mm
        offset = float(header["vox_offset"])
        findings = tuple(_findings(header, affine, unit, mm))
    n_voxels = _n_voxels(path, shape)
    if dtype.kind not in "iuf":
        raise DataError(f"{path} holds voxels of type {dtype}; alseg reads integers and floats")
    if not size <= offset <= _MAX_DATA_OFFSET:
        raise DataError(f"{path} says its voxels start at byte {offset:g}, which cannot be")
    n_bytes = int(offset) + n_voxels * dtype.itemsize
    can_hold = path.stat().st_size * (_MAX_GZIP_RATIO if path.suffix == ".gz" else 1)
    if can_hold < n_bytes:
        raise DataError(
            f"{path} is cut off: its header declares {n_bytes} bytes, more than the file can hold"
        )
    _check_affine(path, affine)
    return Header(shape, affine, dtype, n_bytes, findings)


def _read_header_with_itk(path: Path) -> Header:
    read = read_itk_header(path)
    n_bytes = _n_voxels(path, read.shape) * read.dtype.itemsize
    _check_affine(path, read.affine)
    return Header(read.shape, read.affine, read.dtype, n_bytes, tuple(_findings_of_itk(path, read)))


def _findings_of_itk(path: Path, header: ItkHeader) -> Iterator[Finding]:
    """What an NRRD or MetaImage file leaves open, or is not read as other programs might."""
    edges = np.linalg.norm(header.affine[:3, :3], axis=0)
    if header.unit not in ("", "mm"):
        yield _other_unit(header.unit, edges)
    if not header.has_orientation:
        yield _unknown_orientation(header.affine)
    if header.is_scaled:
        yield warning(
            "intensities", "its header scales its intensities; they are read as they are stored"
        )
    beside = data_file(path)
    if beside is not None and not is_within(beside, path.parent):
        yield warning("links", f"its voxels are read from {beside.resolve()}, by a link")


def _n_voxels(path: Path, shape: Sequence[int]) -> int:
    """How many voxels a file declares, if it can be so many."""
    if not shape or min(shape) < 1:
        raise DataError(f"{path} has shape {shape}, which holds no voxels")
    n_voxels = int(np.prod([*shape], dtype=object))
    if 4 * n_voxels > MAX_GIB * 2**30:
        raise DataError(
            f"{path} has shape {shape}, {4 * n_voxels / 2**30:.3g} GiB as float32; alseg reads up "
            f"to {MAX_GIB} GiB a file"
        )
    return n_voxels


def read_volume(paths: Sequence[Path]) -> MetaTensor:
    """Read one file, or several as channels.

    Returns:
        The voxels, float32 [channels, D, H, W], with their affine [4, 4] in mm, as ``read_header``
        gives it. (MONAI's reader takes another one where the header contradicts itself, and tries
        all its other readers on a file that is broken.)

    Raises:
        DataError: if a file is broken, or holds more or less than its header declares.
    """
    channels = [_read_voxels(path, read_header(path)) for path in paths]
    affine = torch.from_numpy(read_header(paths[0]).affine)
    return MetaTensor(torch.from_numpy(np.concatenate(channels)), affine=affine)


def _read_voxels(path: Path, header: Header) -> np.ndarray:
    """float32 [channels, D, H, W]."""
    if not header.n_channels:
        raise DataError(f"{path} has shape {header.shape}; a 3D volume is needed")
    if path.suffix in ITK_ENDINGS:
        return read_itk_voxels(path)
    if path.suffix == ".gz":
        _check_stream(path, header.n_bytes)
    with reading(path):
        stored = nibabel.load(path)  # type: ignore[attr-defined]
        voxels = np.asarray(stored.dataobj)
    # channels stand behind the axes of space, or behind an axis of one
    return row_major(np.moveaxis(voxels.reshape(*header.shape[:3], -1), -1, 0))


def write_nifti(path: Path, volume: Tensor, like: Path) -> None:
    """Write a volume [D, H, W] on the grid of a file, with all that its header says of space.

    Orientation codes and unit are copied, not only the matrix that follows from them: programs
    differ in what they make of a file without codes, and must make the same of both files.
    """
    voxels = volume.cpu().numpy()
    if like.suffix in ITK_ENDINGS:
        save_nifti(path, voxels, read_header(like).affine)
        return
    size, source = _raw_header(like)
    header = _HEADERS[size]()
    header.set_data_dtype(voxels.dtype)
    for field in _GEOMETRY:
        header[field] = source[field]
    header["pixdim"][:4] = source["pixdim"][:4]  # handedness and edges
    _write(path, _IMAGES[size](voxels, None, header))


def exact_voxels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A file's voxels [D, H, W] or [D, H, W, channels] for ``save_nifti``, and their matrix [4, 4].

    float32, or int16 where that is exact.
    """
    volume = read_volume((path,))
    voxels = np.moveaxis(volume.numpy(), 0, -1)
    voxels = voxels[..., 0] if voxels.shape[-1] == 1 else voxels
    return as_int16_if_exact(voxels), volume.affine.numpy()


def as_int16_if_exact(voxels: np.ndarray) -> np.ndarray:
    """The same values in half the bytes, where all are whole numbers within 16 bits."""
    if np.abs(voxels).max() < 2**15 and np.array_equal(np.rint(voxels), voxels):
        return voxels.astype(np.int16)
    return voxels


def save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Write voxels [D, H, W] or [D, H, W, channels] as a new NIfTI file.

    The header holds the voxel-to-world matrix [4, 4], in mm, and nothing else: no
    description, no name, no date.
    """
    image = nibabel.Nifti1Image(voxels, affine)  # type: ignore[attr-defined]
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    _write(path, image)


def _write(path: Path, image: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as stream:
        stream.write(image.to_bytes())


def _check_stream(path: Path, declared: int) -> None:
    """Decompress step by step: the checksum holds, and the end is where the header says."""
    n_bytes = 0
    with reading(path), gzip.open(path) as file:
        while n_bytes <= declared + _STEP and (step := file.read(_STEP)):
            n_bytes += len(step)
    if n_bytes > declared + _STEP:
        raise DataError(
            f"{path} continues after the {declared} bytes that its header declares: a "
            "decompression bomb, or damaged"
        )
    if n_bytes < declared:
        raise DataError(f"{path} is cut off: it holds {n_bytes} of the {declared} bytes declared")


def _check_affine(path: Path, affine: np.ndarray) -> None:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0.0
    # relative to the edges: of oblique axes, a thousandth of a box is left before this refuses
    if not 1e-3 * np.prod(spacing) < volume < np.inf:
        raise DataError(
            f"{path} has the voxel-to-world matrix {affine.tolist()}, whose voxels have no volume"
        )


def _raw_header(path: Path) -> tuple[int, Any]:
    """The header as nibabel reads it, and its size in bytes."""
    with reading(path), path.open("rb") as file:
        pointer = file.read(40).startswith(_POINTERS)
        file.seek(0)
        block = b"" if pointer else _plain(path, file).read(max(_HEADERS))
    if pointer:
        raise DataError(
            f"{path} only says where its content is; fetch it first (git annex get, git lfs pull)"
        )
    if not block:
        raise DataError(f"{path} is empty; copy it again")
    if len(block) < min(_HEADERS):
        raise DataError(
            f"{path} is cut off: it holds {len(block)} bytes, and the header of a NIfTI file "
            f"has {min(_HEADERS)}"
        )
    with reading(path):
        size = next((n for n in _HEADERS if n in _sizes(block)), 348)
        return size, _HEADERS[size](block[:size])


def _plain(path: Path, file: IO[bytes]) -> IO[bytes]:
    return gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file  # type: ignore[return-value]


def _findings(header: Any, affine: np.ndarray, unit: str, mm: float) -> Iterator[Finding]:
    """What a header leaves open, or says twice and differently."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if unit != "mm":
        yield _other_unit(unit, edges)
    codes = int(header["sform_code"]), int(header["qform_code"])
    if max(codes) <= 0:
        yield _unknown_orientation(affine, "its header has neither an sform nor a qform code")
    if codes[0] <= 0:
        return
    zooms = mm * np.asarray(header.get_zooms()[:3], np.float64)
    if len(zooms) == 3 and (np.abs(zooms - edges) > _MAX_DISAGREEMENT * edges).any():
        yield warning(
            "sform and pixdim",
            f"its sform has voxels of {in_mm(edges)}, its pixdim of {in_mm(zooms)}; the sform is "
            "read",
        )
    elif codes[1] > 0 and (distance := _between_forms(header, edges / mm)) > _MAX_DISAGREEMENT:
        yield warning(
            "sform and qform",
            f"its sform and its qform place a corner {distance:.3g} voxels apart; the sform is "
            "read",
        )


def _other_unit(unit: str, edges: np.ndarray) -> Finding:
    return warning(
        "unit", f"its header gives lengths in {unit}; its voxels are read as {in_mm(edges)}"
    )


def _unknown_orientation(
    affine: np.ndarray, why: str = "its header does not say how its axes lie"
) -> Finding:
    axes = "".join(nibabel.aff2axcodes(affine))  # type: ignore[attr-defined]
    return warning("orientation unknown", f"{why}; its axes are taken as {axes}")


def _between_forms(header: Any, edges: np.ndarray) -> float:
    """The largest distance between a corner by the sform and by the qform, in voxel edges."""
    try:
        difference = header.get_sform() - header.get_qform()
    except (HeaderDataError, ValueError):  # quaternions that are none
        return np.inf
    last = np.array([*header.get_data_shape(), 1, 1, 1][:3]) - 1
    corners = np.array(list(np.ndindex(2, 2, 2))) * last
    moved = corners @ difference[:3, :3].T + difference[:3, 3]
    return float(np.linalg.norm(moved, axis=1).max() / edges.min())


def _sizes(block: bytes) -> tuple[int, int]:
    """The header's size as it stands in the file, in both byte orders."""
    return int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Report whatever reading a file may raise: errors of gzip, zlib, struct and nibabel."""
    try:
        yield
    except MemoryError as error:
        raise DataError(f"{path} does not fit into memory") from error
    except EOFError as error:  # of gzip
        raise DataError(f"{path} is cut off: its compressed bytes end too early") from error
    except OSError as error:
        if error.strerror is None:
            raise DataError(f"{path} is not a readable NIfTI file: {error}") from error
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:
        raise DataError(f"{path} is not a readable NIfTI file: {error}") from error
