"""Volumes as the page shows them, and drawings back on the image's own grid.

The browser gets every volume with its axes in the order and direction that is closest to right,
anterior, superior (RAS), and with a plain grid of the same spacing: its viewer then has nothing to
re-orient, and a voxel of the drawing is the voxel of the same index. Only flips and permutations of
axes lie between the two, so that a drawing comes back to the voxel, for oblique and left-handed
images as well.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    io_orientation,
    ornt_transform,
)

from alseg.core.errors import DataError
from alseg.data.volumes import Header, as_int16_if_exact, read_header, read_volume

_RAS = axcodes2ornt("RAS")
_PERCENTILES = (1.0, 99.5)  # of the intensities that are shown from black to white


@dataclass(frozen=True)
class Grid:
    """The grid of an image, and the page's beside it.

    Attributes:
        shape: voxels along the image's axes [3].
        affine: [4, 4] voxel-to-world matrix of the image, in mm.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @classmethod
    def of(cls, header: Header) -> Grid:
        """The grid of a volume by its header."""
        return cls((header.shape[0], header.shape[1], header.shape[2]), header.affine)

    @property
    def n_voxels(self) -> int:
        """Voxels of the volume."""
        return int(np.prod(self.shape))

    @property
    def page_affine(self) -> np.ndarray:
        """[4, 4] matrix of the page's grid: the spacing along its axes, in mm, and nothing else."""
        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        to_page = io_orientation(self.affine)[:, 0].astype(int)
        return np.diag([*spacing[np.argsort(to_page)], 1.0])

    def to_page(self, voxels: np.ndarray) -> np.ndarray:
        """Voxels [D, H, W] of the image, in the page's order of axes."""
        return apply_orientation(voxels, io_orientation(self.affine))

    def to_image(self, voxels: np.ndarray) -> np.ndarray:
        """Voxels in the page's order of axes, as [D, H, W] of the image."""
        return apply_orientation(voxels, ornt_transform(_RAS, io_orientation(self.affine)))

    def voxel_on_page(self, voxel: Sequence[int]) -> list[int]:
        """The indices of a voxel of the image, in the page's order of axes."""
        found = [0, 0, 0]
        for index, n, (axis, sign) in zip(
            voxel, self.shape, io_orientation(self.affine), strict=True
        ):
            found[int(axis)] = index if sign > 0 else n - 1 - index
        return found

    @property
    def page_shape(self) -> tuple[int, ...]:
        """Voxels along the page's axes."""
        return tuple(
            n for _, n in sorted(zip(io_orientation(self.affine)[:, 0], self.shape, strict=True))
        )


def volume_for_page(paths: Sequence[Path], channel: int = 0) -> bytes:
    """A volume as an uncompressed NIfTI file on the page's grid.

    Args:
        paths: its file, or one a channel.
        channel: the channel to show, from 0.

    Raises:
        DataError: if a file is broken, or there is no such channel.
    """
    volume = read_volume(paths)
    if not 0 <= channel < len(volume):
        raise DataError(f"{paths[0]} has no channel {channel}: it has {len(volume)}")
    voxels = volume[channel].numpy()
    grid = Grid.of(read_header(paths[0]))
    finite = voxels[:: 1 + voxels.shape[0] // 64, :: 1 + voxels.shape[1] // 64]
    finite = finite[np.isfinite(finite)]
    window = np.percentile(finite, _PERCENTILES) if finite.size else (0.0, 1.0)
    if window[0] == window[1]:  # a map that is the same nearly everywhere
        window = np.nanmin(voxels), np.nanmax(voxels)
    exact = as_int16_if_exact(voxels)
    image = nibabel.Nifti1Image(grid.to_page(exact), grid.page_affine)  # type: ignore[attr-defined]
    image.header.set_xyzt_units("mm")
    image.header["cal_min"], image.header["cal_max"] = window
    content: bytes = image.to_bytes()
    return content


def drawing_for_page(classes: np.ndarray, grid: Grid) -> bytes:
    """Class values [D, H, W] as gzip of a byte a voxel, the page's first axis fastest."""
    return gzip.compress(grid.to_page(classes.astype(np.uint8)).tobytes("F"), 1, mtime=0)


def drawing_from_page(content: bytes, grid: Grid) -> np.ndarray:
    """The drawing that ``drawing_for_page`` has written, on the image's grid.

    No more is decompressed than the grid has voxels.

    Returns:
        Class values, uint8 [D, H, W].

    Raises:
        DataError: if it is not one byte for each voxel.
    """
    stream = zlib.decompressobj(wbits=31)
    try:
        voxels = stream.decompress(content, grid.n_voxels + 1)
    except zlib.error as error:
        raise DataError(f"the drawing is no gzip stream: {error}") from error
    if len(voxels) != grid.n_voxels or not stream.eof:
        raise DataError(
            f"the drawing does not have one byte for each of the {grid.n_voxels} voxels of the "
            "image; load the page again"
        )
    drawn = np.frombuffer(voxels, np.uint8).reshape(grid.page_shape, order="F")
    return np.ascontiguousarray(grid.to_image(drawn))
