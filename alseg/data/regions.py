"""Regions: boxes of a source image's own voxels, and where they lie on the preprocessed grid.

This is the only place that converts between the two. A voxel of the grid belongs to the source
voxel that its centre lies in (is nearest to). So a region covers the grid voxels whose centres lie
in it, and a box of the grid gives the smallest region that holds its centres. From a region to the
grid and back is the identity wherever the grid is at least as fine as the source; where it is
coarser by a factor f, what comes back lies inside and lacks less than f voxels at each face.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from alseg.core.errors import ConfigError, check_choice, check_number, check_whole_number
from alseg.core.units import PLURALS, Region
from alseg.strategies.places import AxisPlaces, Places

SLICE_AXES = ("auto", 0, 1, 2)
_DRIFT = 0.01  # of a source voxel, that an axis of the grid may stray from the source's
_NOISE = 6  # decimals of a voxel: what an affine's rounding must not decide


@dataclass(frozen=True)
class Grid:
    """How the preprocessed grid of a case lies in its source image.

    Attributes:
        source_shape: voxels of the source along its axes.
        source_affine: its voxel-to-world matrix in mm, [4, 4].
        order: the source axis that each axis of the grid runs along.
        nearest: along each axis of the grid, the source voxel nearest to each grid voxel's centre;
            beyond the image where the grid is.
    """

    source_shape: tuple[int, int, int]
    source_affine: np.ndarray
    order: tuple[int, int, int]
    nearest: tuple[np.ndarray, np.ndarray, np.ndarray]

    @classmethod
    def of(cls, entry: Mapping[str, Tensor]) -> Grid:
        """The grid of an image, as ``VolumeCache.image`` gives it.

        Raises:
            ConfigError: if the grid's axes are not the source's, so that no box of one is a box of
                the other.
        """
        source_affine = entry["source_affine"].double().numpy()
        step = np.linalg.inv(source_affine) @ entry["affine"].double().numpy()
        shape = tuple(entry["image"].shape[1:])
        order = np.abs(step[:3, :3]).argmax(axis=0)
        along = np.zeros((3, 3), dtype=bool)
        along[order, range(3)] = True
        drift = np.abs(np.where(along, 0, step[:3, :3])) * (np.array(shape) - 1)
        if sorted(order) != [0, 1, 2] or drift.max() > _DRIFT:
            raise ConfigError(
                "data.preprocess rotates or shears volumes against the axes of their files; with "
                "pool.unit=patch or slice it may re-order, flip, scale, crop and pad them only"
            )
        nearest = []
        for axis, n_voxels in enumerate(shape):
            scale, offset = step[order[axis], axis], step[order[axis], 3]
            centres = np.round(scale * np.arange(n_voxels) + offset, _NOISE)
            nearest.append(np.rint(centres).astype(np.int64))
        first, second, third = (int(n) for n in entry["source_shape"])
        return cls(
            (first, second, third),
            source_affine,
            (int(order[0]), int(order[1]), int(order[2])),
            (nearest[0], nearest[1], nearest[2]),
        )

    def box(self, region: Region) -> tuple[slice, slice, slice]:
        """The box of grid voxels whose centres lie in a region; empty where there are none."""
        slices = []
        for axis, near in zip(self.order, self.nearest, strict=True):
            start, stop = region[axis]
            inside = np.flatnonzero((near >= start) & (near < stop))
            slices.append(slice(inside[0], inside[-1] + 1) if len(inside) else slice(0, 0))
        return slices[0], slices[1], slices[2]

    def region(self, box: Sequence[slice]) -> Region:
        """The smallest region that holds the centres of a box of the grid, cut at the image.

        Raises:
            ValueError: if no centre of the box lies in the image.
        """
        edges = [(0, 0)] * 3
        for axis, near, within in zip(self.order, self.nearest, box, strict=True):
            n_voxels = self.source_shape[axis]
            inside = near[within][(near[within] >= 0) & (near[within] < n_voxels)]
            if not len(inside):
                raise ValueError(f"no voxel of the box {tuple(box)} lies in the image")
            edges[axis] = int(inside.min()), int(inside.max()) + 1
        return edges[0], edges[1], edges[2]

    def face(self, region: Region) -> int:
        """The axis of the grid that looks at the largest face of a region of the source.

        That is the one with the fewest voxels of the region along it; of several, the one that
        ``slice_axis`` gives.
        """
        natural = slice_axis(self.source_affine)
        n_voxels = [stop - start for start, stop in region]
        across = min(range(3), key=lambda axis: (n_voxels[axis], axis != natural))
        return self.order.index(across)

    def sampled(self, mask: np.ndarray, box: Sequence[slice]) -> np.ndarray:
        """A mask of the source at the voxels of a box of the grid; False beyond the image.

        Args:
            mask: bool, of ``source_shape``.
            box: of the grid.
        """
        on_grid = mask.transpose(self.order)
        for axis, (near, within) in enumerate(zip(self.nearest, box, strict=True)):
            n_voxels, index = on_grid.shape[axis], near[within]
            is_inside = ((index >= 0) & (index < n_voxels)).reshape(-1, *[1] * (2 - axis))
            on_grid = on_grid.take(index.clip(0, n_voxels - 1), axis) & is_inside
        return on_grid

    def places(
        self, size: Sequence[int], taken: Iterable[Region] = (), n_most: int | None = None
    ) -> Places:
        """All places of regions of one size that the grid can tell apart.

        Left out are those without a voxel of the grid, and along each axis those that hold fewer
        than the fullest, beyond rounding: they hang over the edge of what preprocessing has kept.
        Of those that begin with the same grid voxel the first counts.

        Args:
            size: in source voxels, along the source's axes; cut down to the image.
            taken: regions that nothing may overlap.
            n_most: how many regions may be chosen; None for as many as there is room for.
        """
        first, second, third = (min(n, m) for n, m in zip(size, self.source_shape, strict=True))
        cut = first, second, third
        axes = [
            _axis_places(near, self.source_shape[axis], cut[axis])
            for axis, near in zip(self.order, self.nearest, strict=True)
        ]
        return Places(cut, self.order, (axes[0], axes[1], axes[2]), tuple(taken), n_most)


def _axis_places(near: np.ndarray, n_source: int, edge: int) -> AxisPlaces:
    """The places of an edge of some source voxels along one axis of the grid."""
    starts = np.arange(n_source - edge + 1)
    ascending = near if near[0] <= near[-1] else near[::-1]
    low = np.searchsorted(ascending, starts)
    high = np.searchsorted(ascending, starts + edge)
    n_voxels = high - low
    kept = (n_voxels > 0) & (n_voxels >= n_voxels.max() - 1)
    _, first = np.unique(low[kept], return_index=True)
    starts, low, high = (values[kept][first] for values in (starts, low, high))
    if near[0] > near[-1]:
        low, high = len(near) - high, len(near) - low
    return AxisPlaces(starts, low, high)


def slice_axis(affine: np.ndarray) -> int:
    """The axis that slices are counted along: that of the largest voxel spacing.

    Along it a scan is thinnest sampled, and in planes across it people draw; where spacings agree
    within 1%, the axis nearest to foot-head.

    Args:
        affine: voxel-to-world matrix [4, 4], RAS.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    upwards = np.abs(affine[2, :3]) / spacing
    coarsest = spacing >= 0.99 * spacing.max()
    return int(np.argmax(np.where(coarsest, upwards, -1)))


@dataclass(frozen=True)
class UnitShape:
    """What is annotated in one go, as settings say it: ``pool.unit`` and those below it.

    Attributes:
        unit: ``volume``, ``patch`` or ``slice``.
        patch_mm: the edges of a patch in mm, or one for all.
        patch_voxels: in voxels of the file instead; both along the file's own axes.
        slice_axis: the axis that slices lie across: ``auto`` (see ``slice_axis``), 0, 1 or 2.

    Raises:
        ConfigError: if they do not fit together.
    """

    unit: str = "volume"
    patch_mm: float | Sequence[float] | None = None
    patch_voxels: int | Sequence[int] | None = None
    slice_axis: str | int = "auto"

    def __post_init__(self) -> None:
        check_choice("pool.unit", self.unit, PLURALS)
        if self.slice_axis not in SLICE_AXES or isinstance(self.slice_axis, bool):
            raise ConfigError(f"pool.slice_axis is {self.slice_axis!r}; it must be auto, 0, 1 or 2")
        given = [n for n in ("patch_mm", "patch_voxels") if getattr(self, n) is not None]
        if self.unit == "patch" and len(given) != 1:
            raise ConfigError(
                "pool.unit=patch needs pool.patch_voxels or pool.patch_mm, one of the two"
            )
        if self.unit != "patch" and given:
            raise ConfigError(f"pool.{given[0]} is for pool.unit=patch, not for {self.unit}")
        if self.unit != "slice" and self.slice_axis != "auto":
            raise ConfigError(f"pool.slice_axis is for pool.unit=slice, not for {self.unit}")
        if self.patch_mm is not None:
            for name, edge in _edges("pool.patch_mm", self.patch_mm):
                check_number(name, edge, above=0)
        if self.patch_voxels is not None:
            for name, edge in _edges("pool.patch_voxels", self.patch_voxels):
                check_whole_number(name, edge, at_least=1)

    @property
    def is_region(self) -> bool:
        """Whether it is a part of a volume."""
        return self.unit != "volume"

    @property
    def edges_mm(self) -> list[float]:
        """``patch_mm`` along each axis [3]."""
        return _three("pool.patch_mm", self.patch_mm)

    def across(self, affine: np.ndarray) -> int:
        """The axis that slices lie across in an image with this voxel-to-world matrix [4, 4]."""
        return slice_axis(affine) if self.slice_axis == "auto" else int(self.slice_axis)

    def size(self, shape: Sequence[int], affine: np.ndarray) -> tuple[int, int, int]:
        """Its edges in an image, in voxels along the image's axes; at most the image.

        Args:
            shape: of the image [3].
            affine: its voxel-to-world matrix in mm [4, 4].
        """
        if self.unit == "slice":
            across = self.across(affine)
            edges = [1 if axis == across else n for axis, n in enumerate(shape)]
        elif self.patch_voxels is not None:
            edges = _three("pool.patch_voxels", self.patch_voxels)
        elif self.patch_mm is not None:
            spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
            edges = [max(1, round(mm / s)) for mm, s in zip(self.edges_mm, spacing_mm, strict=True)]
        else:
            edges = list(shape)
        first, second, third = (min(e, n) for e, n in zip(edges, shape, strict=True))
        return first, second, third


def _three(name: str, value: Any) -> list[Any]:
    """The edges along the three axes of the file."""
    edges = [edge for _, edge in _edges(name, value)]
    return edges if len(edges) == 3 else edges * 3


def _edges(name: str, value: Any) -> list[tuple[str, Any]]:
    """The edges that a setting gives, one or three, each with what an error calls it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 3:
            raise ConfigError(
                f"{name} is {list(value)}; it must be one number, or one for each axis"
            )
        return [(f"{name} along axis {axis}", edge) for axis, edge in enumerate(value)]
    return [(name, value)]
