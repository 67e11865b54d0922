"""The regions of a run: where they may lie in each case, and draws of them at random."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_erosion
from torch import Tensor

from alseg.core.pool import Pool
from alseg.core.units import Query, Region, Unit
from alseg.data.cache import VolumeCache
from alseg.data.regions import UnitShape
from alseg.strategies.places import Box, Place, Places

_TRIES = 100  # voxels of a class that are tried as the middle of a region


@dataclass(frozen=True)
class RegionUnits:
    """The regions that may be asked for.

    Attributes:
        cache: gives the preprocessed volumes, and how they lie in their files.
        shape: of a region.
        max_per_case: regions of one case in all rounds together; None for no limit.
        annotatable: of a case, see ``Oracle.annotatable``: a region needs such a voxel.
    """

    cache: VolumeCache
    shape: UnitShape
    max_per_case: int | None
    annotatable: Callable[[str], np.ndarray | None]

    def places(self, pool: Pool, case_id: str, n_wanted: int) -> Places:
        """Where regions of a case may lie: they can be annotated, and overlap no annotated one.

        Args:
            pool: what is annotated.
            case_id: the case.
            n_wanted: at most so many of them.
        """
        grid, taken = self.cache.grid(case_id), pool.regions_of(case_id)
        if self.max_per_case is not None:
            n_wanted = max(0, min(n_wanted, self.max_per_case - len(taken)))
        size = self.shape.size(grid.source_shape, grid.source_affine)
        places = grid.places(size, taken, n_wanted)
        if self.annotatable(case_id) is None:
            return places
        return replace(places, annotatable=partial(self._annotatable, case_id))

    def _annotatable(self, case_id: str, box: Box) -> np.ndarray:
        """Which voxels of a box of the grid can be annotated; only the oracle keeps the mask."""
        mask = self.annotatable(case_id)
        assert mask is not None
        return self.cache.grid(case_id).sampled(mask, box)

    def selectable(self, pool: Pool) -> tuple[str, ...]:
        """The cases with room for another region, sorted."""
        rng = np.random.default_rng(0)  # any place will do

        def has_room(case_id: str) -> bool:
            places = self.places(pool, case_id, 1)
            return bool(places.n_most) and bool(places.at_random(rng, 1))

        return tuple(case_id for case_id in pool.incomplete if has_room(case_id))

    def draw(
        self,
        pool: Pool,
        case_ids: Iterable[str],
        n_units: int,
        rng: np.random.Generator,
        hidden_labels: Mapping[str, Path] | None = None,
        foreground_share: float = 0.0,
    ) -> Query:
        """Draw random regions, a case after the other in a random order, until there are enough.

        With a ``foreground_share`` that share of them has its middle on a voxel of a foreground
        class: of a class that is drawn among those of the case, from all of its voxels or, as
        often, from its boundary. Where no case has room for such a region, it is drawn as the
        others.

        Source: nnActive (Lüth et al., TMLR 2025), its baselines Random and Foreground Aware Random;
        there each region is centred on foreground with the probability that is a share here.

        Args:
            pool: what is annotated.
            case_ids: the cases to draw from.
            n_units: how many.
            rng: draws.
            hidden_labels: label files of the cases, for regions that are centred on foreground.
            foreground_share: in [0, 1].

        Returns:
            The regions; fewer if there is no room for more.
        """
        draw = _Draw(self, pool, n_units, rng, hidden_labels or {})
        order = sorted(case_ids)
        waiting = [order[i] for i in rng.permutation(len(order))]
        centred = np.arange(n_units) < round(foreground_share * n_units)
        units: list[Unit] = []
        for wants_foreground in rng.permutation(centred):
            unit = draw.next(waiting, centred=True) if wants_foreground else None
            unit = unit or draw.next(waiting, centred=False)
            if unit is None:
                break
            units.append(unit)
        return tuple(units)


class _Draw:
    """Draws of regions, none of which overlaps an earlier one."""

    def __init__(
        self,
        units: RegionUnits,
        pool: Pool,
        n_units: int,
        rng: np.random.Generator,
        hidden_labels: Mapping[str, Path],
    ) -> None:
        self.units, self.pool, self.n_units, self.rng = units, pool, n_units, rng
        self.hidden_labels = hidden_labels
        self._places: dict[str, Places] = {}

    def next(self, waiting: list[str], *, centred: bool) -> Unit | None:
        """A region of the first case that has room for it; that case waits behind the others."""
        for case_id in list(waiting):
            region = self._region(case_id, centred=centred)
            if region is not None:
                waiting.remove(case_id)
                waiting.append(case_id)
                return Unit(case_id, region)
            if not centred:
                waiting.remove(case_id)  # it is full
        return None

    def _region(self, case_id: str, *, centred: bool) -> Region | None:
        if case_id not in self._places:
            self._places[case_id] = self.units.places(self.pool, case_id, self.n_units)
        places = self._places[case_id]
        place: Place | None = None
        if places.n_most and centred:
            label = self.units.cache.label(case_id, self.hidden_labels[case_id])[0]
            place = centred_place(label, places, self.rng)
        elif places.n_most:
            place = next(iter(places.at_random(self.rng, 1)), None)
        if place is None:
            return None
        region = places.region(place)
        self._places[case_id] = replace(
            places, taken=(*places.taken, region), n_most=(places.n_most or 1) - 1
        )
        return region


def centred_place(label: Tensor, places: Places, rng: np.random.Generator) -> Place | None:
    """A free place with its middle on a voxel of a random class; None if none is found.

    Args:
        label: class indices [D, H, W].
        places: of the regions.
        rng: draws.
    """
    classes = label.numpy()
    present = np.unique(classes[classes > 0])
    if not len(present):
        return None
    inside = classes == rng.choice(present)
    if rng.random() < 0.5:  # those with one of the six neighbours outside
        inside = inside & ~binary_erosion(inside, border_value=1)
    voxels = np.argwhere(inside)
    for index in rng.permutation(len(voxels))[:_TRIES]:
        place = places.around(voxels[index])
        if places.is_free(place, places.taken):
            return place
    return None
