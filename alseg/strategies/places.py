"""Where regions of one size can lie in a volume, and the best of them that do not overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)
from torch import Tensor

from alseg.core.units import Region

Place = tuple[int, int, int]  # an index into the places along each grid axis
Box = tuple[slice, slice, slice]  # of grid voxels
_TRIES = 200  # random draws of a place before all free ones are listed


@dataclass(frozen=True)
class AxisPlaces:
    """The places of a region along one axis of the preprocessed grid.

    Attributes:
        starts: the first source voxel of each place, ascending, [n].
        low: the first grid voxel whose centre lies in it, [n].
        high: the one after the last, [n].
    """

    starts: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Places:
    """All places of regions of one size in a case.

    Along each axis the places are independent of the other axes, so that they are as many as the
    grid's voxels and take the memory of three rows.

    Attributes:
        size: of a region in source voxels, along the source's axes.
        order: the source axis that each axis of the grid runs along.
        axes: the places along each axis of the grid.
        taken: regions that nothing may overlap.
        n_most: how many regions may be chosen; None for as many as there is room for.
        annotatable: which voxels of a box of the grid can be annotated, bool; a region needs one.
            None where all can.
    """

    size: tuple[int, int, int]
    order: tuple[int, int, int]
    axes: tuple[AxisPlaces, AxisPlaces, AxisPlaces]
    taken: tuple[Region, ...] = ()
    n_most: int | None = None
    annotatable: Callable[[Box], np.ndarray] | None = None

    @cached_property
    def shape(self) -> Place:
        """The number of places along each axis of the grid."""
        first, second, third = (len(axis.starts) for axis in self.axes)
        return first, second, third

    def region(self, place: Sequence[int]) -> Region:
        """The box of source voxels at a place."""
        edges = [(0, 0)] * 3
        for axis, index, source_axis in zip(self.axes, place, self.order, strict=True):
            start = int(axis.starts[index])
            edges[source_axis] = start, start + self.size[source_axis]
        return edges[0], edges[1], edges[2]

    def box(self, place: Sequence[int]) -> Box:
        """The box of grid voxels at a place."""
        first, second, third = (
            slice(int(axis.low[index]), int(axis.high[index]))
            for axis, index in zip(self.axes, place, strict=True)
        )
        return first, second, third

    def at(self, region: Region) -> Place:
        """The place of a region, or the last one that begins before it."""
        first, second, third = (
            max(0, int(np.searchsorted(axis.starts, region[source_axis][0], side="right")) - 1)
            for axis, source_axis in zip(self.axes, self.order, strict=True)
        )
        return first, second, third

    def around(self, voxel: Sequence[int]) -> Place:
        """The place whose box has its middle nearest to a grid voxel."""
        first, second, third = (
            int(np.argmin(np.abs(axis.low + axis.high - 1 - 2 * index)))
            for axis, index in zip(self.axes, voxel, strict=True)
        )
        return first, second, third

    def overlapping(self, region: Region) -> Box:
        """The places that overlap a region."""
        slices = []
        for axis, source_axis in zip(self.axes, self.order, strict=True):
            start, stop = region[source_axis]
            first = np.searchsorted(axis.starts, start - self.size[source_axis], side="right")
            slices.append(slice(int(first), int(np.searchsorted(axis.starts, stop))))
        return slices[0], slices[1], slices[2]

    def is_free(self, place: Sequence[int], taken: Sequence[Region]) -> bool:
        """Whether a place overlaps none of some regions, and can be annotated."""
        if any(
            all(s.start <= i < s.stop for s, i in zip(self.overlapping(r), place, strict=True))
            for r in taken
        ):
            return False
        return self.annotatable is None or bool(self.annotatable(self.box(place)).any())

    @cached_property
    def unanswerable(self) -> Tensor | None:
        """The places without a voxel that can be annotated, bool of ``shape``; None for none."""
        if self.annotatable is None:
            return None
        everywhere = slice(None), slice(None), slice(None)
        return self.totals(torch.from_numpy(self.annotatable(everywhere))) == 0

    def totals(self, volume: Tensor) -> Tensor:
        """The sum over the box of each place: the box filter, [D, H, W] to ``shape``.

        Axis by axis the difference of two running sums in float64: its cost does not depend on the
        size of the boxes, and rounding errors are those of a row and not of the volume.
        """
        for number in (2, 1, 0):  # the last axis first: its rows lie together in memory
            axis = self.axes[number]
            sums = volume.cumsum(dim=number, dtype=torch.float64)
            sums = F.pad(sums, [0, 0] * (2 - number) + [1, 0])  # nothing lies before the first
            volume = sums.index_select(number, torch.as_tensor(axis.high).to(sums.device))
            volume -= sums.index_select(number, torch.as_tensor(axis.low).to(sums.device))
        return volume

    def means(self, volume: Tensor) -> Tensor:
        """The mean over the box of each place, [D, H, W] to ``shape``."""
        totals = self.totals(volume)
        for number, axis in enumerate(self.axes):
            shape = [-1 if i == number else 1 for i in range(3)]
            totals /= torch.as_tensor(axis.high - axis.low).reshape(shape).to(totals.device)
        return totals

    def best(
        self, scores: Tensor, n_regions: int, also_taken: Sequence[Region] = ()
    ) -> list[tuple[Place, float]]:
        """The best places that overlap neither each other nor what is taken.

        Greedy: the highest score, then the highest of what does not overlap it, and so on; of equal
        scores the first place along the grid's axes.

        Args:
            scores: one a place, of ``shape``; it is written over.
            n_regions: at most that many.
            also_taken: further regions that none may overlap.
        """
        for region in (*self.taken, *also_taken):
            scores[self.overlapping(region)] = -torch.inf
        if self.unanswerable is not None:
            scores[self.unanswerable.to(scores.device)] = -torch.inf
        chosen: list[tuple[Place, float]] = []
        while len(chosen) < n_regions:
            place = self._place(int(scores.argmax()))
            score = float(scores[place])
            if score == -torch.inf:
                break
            chosen.append((place, score))
            scores[self.overlapping(self.region(place))] = -torch.inf
        return chosen

    def at_random(self, rng: np.random.Generator, n_regions: int) -> list[Place]:
        """Places drawn uniformly, one after another, of those that are still free."""
        chosen: list[Place] = []
        while len(chosen) < n_regions:
            taken = [*self.taken, *map(self.region, chosen)]
            place = self._draw(rng, taken)
            if place is None:
                break
            chosen.append(place)
        return chosen

    def _draw(self, rng: np.random.Generator, taken: Sequence[Region]) -> Place | None:
        for _ in range(_TRIES):
            first, second, third = (int(rng.integers(n)) for n in self.shape)
            if self.is_free((first, second, third), taken):
                return first, second, third
        free = np.ones(self.shape, dtype=bool)
        for region in taken:
            free[self.overlapping(region)] = False
        if self.unanswerable is not None:
            free &= ~self.unanswerable.numpy()
        indices = np.flatnonzero(free)
        if not len(indices):
            return None
        return self._place(int(rng.choice(indices)))

    def _place(self, flat: int) -> Place:
        first, second, third = (int(i) for i in np.unravel_index(flat, self.shape))
        return first, second, third
