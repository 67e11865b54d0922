"""Reading NIfTI files that may be broken or hostile: headers first, voxels in bounded memory."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from monai.data import MetaTensor
from monai.transforms import LoadImage

from alseg.errors import DataError

ENDINGS = (".nii", ".nii.gz")
MAX_GIB = 8  # of a file's voxels as float32: a scan of 1024 x 1024 x 2048
_MAX_DATA_OFFSET = 2**24  # bytes of header extensions; nibabel reads them all
_MAX_GZIP_RATIO = 1032  # deflate can do no more
_STEP = 2**20  # bytes that are decompressed at once
_HEADERS = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Header:
    """What a NIfTI header says of its volume.

    Attributes:
        shape: voxels along each axis; a fourth axis holds channels.
        affine: [4, 4] voxel-to-world matrix in mm.
        dtype: of the stored voxels.
        n_bytes: of the uncompressed file.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: np.dtype
    n_bytes: int

    @property
    def spacing_mm(self) -> np.ndarray:
        """The voxel size along each axis [3], in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def read_header(path: Path) -> Header:
    """Read and check a NIfTI header; of the voxels not one byte is read.

    Raises:
        DataError: if the file is no NIfTI file, or its header declares what cannot be: no voxels,
            more than ``MAX_GIB``, more than the file holds, voxels without a volume.
    """
    if not path.name.endswith(ENDINGS):
        raise DataError(f"{path} does not end in {' or '.join(ENDINGS)}, which alseg reads")
    with reading(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        block = file.read(max(_HEADERS))
    with reading(path):
        size = next((n for n in _HEADERS if n in _sizes(block)), 348)
        header = _HEADERS[size](block[:size])
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype = header.get_data_dtype()
        affine = np.asarray(header.get_best_affine(), np.float64)
        offset = float(header["vox_offset"])
    if not shape or min(shape) < 1:
        raise DataError(f"{path} has shape {shape}, which holds no voxels")
    if dtype.kind not in "iuf":
        raise DataError(f"{path} holds voxels of type {dtype}; alseg reads integers and floats")
    if not size <= offset <= _MAX_DATA_OFFSET:
        raise DataError(f"{path} says its voxels start at byte {offset:g}, which cannot be")
    n_voxels = int(np.prod([*shape], dtype=object))
    if 4 * n_voxels > MAX_GIB * 2**30:
        raise DataError(
            f"{path} has shape {shape}, {4 * n_voxels / 2**30:.3g} GiB as float32; alseg reads up "
            f"to {MAX_GIB} GiB a file"
        )
    n_bytes = int(offset) + n_voxels * dtype.itemsize
    can_hold = path.stat().st_size * (_MAX_GZIP_RATIO if path.suffix == ".gz" else 1)
    if can_hold < n_bytes:
        raise DataError(
            f"{path} is cut off: its header declares {n_bytes} bytes, more than the file can hold"
        )
    _check_affine(path, affine)
    return Header(shape, affine, dtype, n_bytes)


def read_volume(paths: Sequence[Path]) -> MetaTensor:
    """Read one file, or several as channels.

    Returns:
        The voxels, float32 [channels, D, H, W], with their affine [4, 4].

    Raises:
        DataError: if a file is broken, or holds more or less than its header declares.
    """
    for path in paths:
        header = read_header(path)
        if path.suffix == ".gz":
            _check_stream(path, header.n_bytes)
    loader = LoadImage(
        reader="NibabelReader", image_only=True, ensure_channel_first=True, dtype=np.float32
    )
    with reading(paths[0]):
        volume = loader([str(path) for path in paths] if len(paths) > 1 else str(paths[0]))
    assert isinstance(volume, MetaTensor)
    return volume


def _check_stream(path: Path, declared: int) -> None:
    """Decompress step by step: the checksum holds, and the end is where the header says."""
    n_bytes = 0
    with reading(path), gzip.open(path) as file:
        while n_bytes <= declared + _STEP and (step := file.read(_STEP)):
            n_bytes += len(step)
    if n_bytes > declared + _STEP:
        raise DataError(
            f"{path} goes on after the {declared} bytes that its header declares: a decompression "
            "bomb, or damaged"
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


def _sizes(block: bytes) -> tuple[int, int]:
    """The header's size as it stands in the file, in both byte orders."""
    return int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Tell whatever reading a file may raise: errors of gzip, zlib, struct, nibabel and MONAI."""
    try:
        yield
    except MemoryError as error:
        raise DataError(f"{path} does not fit into memory") from error
    except OSError as error:
        if error.strerror is None:
            raise DataError(f"{path} is not a readable NIfTI file: {error}") from error
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:
        raise DataError(f"{path} is not a readable NIfTI file: {error}") from error
