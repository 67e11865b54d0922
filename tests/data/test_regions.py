"""Regions lie where they say: from the file to the preprocessed grid and back."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Affine, Compose, Orientation, Spacing
from scipy.spatial.transform import Rotation

from alseg.core.errors import ConfigError
from alseg.core.units import Region, Unit, overlap
from alseg.data.regions import Grid, UnitShape, slice_axis

STORAGES = [(o, f) for o in permutations(range(3)) for f in product((1, -1), repeat=3)]
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def entry_of(image: MetaTensor, *transforms: Any) -> dict[str, torch.Tensor]:
    """What ``VolumeCache.image`` gives."""
    grid = Compose(list(transforms))(image)
    return {
        "image": grid.as_tensor(),
        "affine": grid.affine.double(),
        "source_affine": image.affine.double(),
        "source_shape": torch.tensor(image.shape[1:]),
    }


@st.composite
def images(draw: st.DrawFn) -> MetaTensor:
    """An image of any orientation, tilt, spacing and shape."""
    order, flips = draw(st.sampled_from(STORAGES))
    tilt = draw(st.sampled_from([(0, 0, 0), (7, -12, 30), (20, 3, -8)]))
    edges = [draw(st.sampled_from([0.5, 0.8, 1.0, 1.3, 2.0, 3.0])) for _ in range(3)]
    shape = [draw(st.integers(3, 9)) for _ in range(3)]
    affine = np.eye(4)
    world = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix()
    affine[:3, :3] = (world @ np.diag(edges))[:, list(order)] * flips
    affine[:3, 3] = draw(st.tuples(*[st.integers(-90, 90)] * 3))
    return MetaTensor(torch.zeros(1, *shape), affine=torch.from_numpy(affine))


@st.composite
def regions(draw: st.DrawFn, shape: tuple[int, ...]) -> Region:
    edges = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        edges.append((start, draw(st.integers(start + 1, n))))
    return edges[0], edges[1], edges[2]


spacings = st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 1.6, 2.5])] * 3)


@SETTINGS
@given(images(), spacings, st.data())
def test_a_region_comes_back_from_the_grid(
    image: MetaTensor, spacing: tuple[float, ...], data: st.DataObject
) -> None:
    entry = entry_of(image, Orientation("RAS", labels=None), Spacing(spacing))
    grid = Grid.of(entry)
    region = data.draw(regions(tuple(image.shape[1:])))
    box = grid.box(region)
    if any(s.start == s.stop for s in box):  # coarser than the region: no centre in it
        return
    back = grid.region(box)
    assert grid.box(back) == box
    edges = torch.stack([entry[name][:3, :3].norm(dim=0) for name in ("affine", "source_affine")])
    for along, axis in enumerate(grid.order):
        (start, stop), after, near = region[axis], back[axis], grid.nearest[along]
        assert start <= after[0] < after[1] <= stop
        # what may be lost at a face, unless preprocessing has cut the image there
        lost = math.ceil(round(float(edges[0, along] / edges[1, axis]), 6)) - 1
        assert after[0] - start <= lost or start < near.min()
        assert stop - after[1] <= lost or stop - 1 > near.max()


@SETTINGS
@given(images(), st.data())
def test_without_resampling_a_region_comes_back_exactly(
    image: MetaTensor, data: st.DataObject
) -> None:
    grid = Grid.of(entry_of(image, Orientation("RAS", labels=None)))
    region = data.draw(regions(tuple(image.shape[1:])))
    box = grid.box(region)
    assert grid.region(box) == region
    assert math.prod(s.stop - s.start for s in box) == math.prod(b - a for a, b in region)


@SETTINGS
@given(images(), spacings, st.data())
def test_places_lie_in_the_image_and_hold_what_they_say(
    image: MetaTensor, spacing: tuple[float, ...], data: st.DataObject
) -> None:
    entry = entry_of(image, Orientation("RAS", labels=None), Spacing(spacing))
    grid = Grid.of(entry)
    size = data.draw(st.tuples(*[st.integers(1, 6)] * 3))
    places = grid.places(size)
    assert min(places.shape) > 0
    volume = torch.from_numpy(np.random.default_rng(0).random(entry["image"].shape[1:]))
    totals, means = places.totals(volume), places.means(volume)
    for place in product(*map(range, places.shape)):
        region = places.region(place)
        assert all(0 <= a < b <= n for (a, b), n in zip(region, image.shape[1:], strict=True))
        assert grid.box(region) == places.box(place)
        inside = volume[places.box(place)]
        assert float(totals[place]) == pytest.approx(float(inside.sum()), rel=1e-12)
        assert float(means[place]) == pytest.approx(float(inside.mean()), rel=1e-12)


@SETTINGS
@given(images(), spacings, st.data())
def test_chosen_regions_overlap_neither_each_other_nor_what_is_annotated(
    image: MetaTensor, spacing: tuple[float, ...], data: st.DataObject
) -> None:
    grid = Grid.of(entry_of(image, Orientation("RAS", labels=None), Spacing(spacing)))
    taken = [data.draw(regions(tuple(image.shape[1:])))]
    places = grid.places(data.draw(st.tuples(*[st.integers(1, 4)] * 3)), taken)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    scores = torch.from_numpy(rng.integers(0, 5, places.shape)).double()
    kept = scores.clone()
    best = places.best(scores, 5)
    drawn = places.at_random(rng, 5)
    for chosen in ([place for place, _ in best], drawn):
        units = [places.region(place) for place in chosen]
        assert not any(overlap(a, b) for i, a in enumerate(units) for b in [*taken, *units[:i]])
    # greedy: the first is the best of all that are free, and nothing free is left if there are few
    free = [p for p in product(*map(range, places.shape)) if places.is_free(p, taken)]
    assert free == [p for p in free if not overlap(places.region(p), taken[0])]
    assert bool(free) == bool(best) == bool(drawn)
    if free:
        assert best[0] == (max(free, key=lambda p: float(kept[p])), float(kept[best[0][0]]))
    if len(best) < 5:
        units = [*taken, *(places.region(place) for place, _ in best)]
        assert not [p for p in free if not any(overlap(places.region(p), u) for u in units)]


@SETTINGS
@given(images(), spacings, st.data())
def test_no_region_is_chosen_where_nothing_can_be_annotated(
    image: MetaTensor, spacing: tuple[float, ...], data: st.DataObject
) -> None:
    entry = entry_of(image, Orientation("RAS", labels=None), Spacing(spacing))
    grid = Grid.of(entry)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    known = rng.random(tuple(image.shape[1:])) < data.draw(st.sampled_from([0, 0.02, 0.3, 1]))
    on_grid = np.zeros(tuple(entry["image"].shape[1:]), dtype=bool)
    for voxel in np.argwhere(known):  # one by one, the grid voxels that lie in it
        on_grid[grid.box(tuple((int(i), int(i) + 1) for i in voxel))] = True
    np.testing.assert_array_equal(grid.sampled(known, [slice(None)] * 3), on_grid)
    places = replace(
        grid.places(data.draw(st.tuples(*[st.integers(1, 4)] * 3))),
        annotatable=lambda box: grid.sampled(known, box),
    )
    answerable = {
        p for p in product(*map(range, places.shape)) if bool(on_grid[places.box(p)].any())
    }
    assert {p for p in product(*map(range, places.shape)) if places.is_free(p, ())} == answerable
    best = places.best(torch.from_numpy(rng.random(places.shape)), 5)
    drawn = places.at_random(rng, 5)
    for chosen in ([place for place, _ in best], drawn):
        assert answerable.issuperset(chosen)
        assert bool(chosen) == bool(answerable)


def test_a_preprocessing_that_rotates_is_refused() -> None:
    image = MetaTensor(torch.zeros(1, 6, 6, 6), affine=torch.eye(4))
    entry = entry_of(image, Affine(rotate_params=(0.3, 0, 0), image_only=True))
    with pytest.raises(ConfigError, match="rotates or shears volumes against the axes"):
        Grid.of(entry)


@pytest.mark.parametrize(
    ("spacing", "region", "expected"),
    [
        ((1, 1, 5), ((0, 8), (0, 8), (2, 3)), 2),  # a slice
        ((1, 1, 5), ((3, 4), (0, 8), (0, 6)), 0),  # one that lies across another axis
        ((1, 1, 5), ((0, 6), (0, 2), (0, 5)), 1),  # a patch that is thin along one axis
        ((1, 1, 5), ((0, 4), (0, 4), (0, 4)), 2),  # a cube of voxels, in the plane of the slices
        ((5, 1, 1), ((0, 4), (0, 4), (0, 4)), 0),
        ((1, 1, 1), ((0, 4), (0, 4), (0, 4)), 2),
    ],
)
@pytest.mark.parametrize("axcodes", ["RAS", "SAR"])
def test_a_region_is_looked_at_through_its_largest_face(
    spacing: tuple[float, ...], region: Region, expected: int, axcodes: str
) -> None:
    image = MetaTensor(torch.zeros(1, 8, 8, 6), affine=np.diag([*spacing, 1.0]))
    grid = Grid.of(entry_of(image, Orientation(axcodes=axcodes, labels=None)))
    assert grid.face(region) == {"RAS": expected, "SAR": 2 - expected}[axcodes]


def test_the_sizes_of_units() -> None:
    of = (20, 10, 8), np.diag([0.8, 0.8, 3.0, 1.0])
    assert UnitShape("patch", patch_mm=8).size(*of) == (10, 10, 3)
    assert UnitShape("patch", patch_mm=[4, 80, 0.1]).size(*of) == (5, 10, 1)
    assert UnitShape("patch", patch_voxels=[16, 16, 4]).size(*of) == (16, 10, 4)
    assert UnitShape("slice").size(*of) == (20, 10, 1)
    assert UnitShape("slice", slice_axis=0).size(*of) == (1, 10, 8)
    assert slice_axis(np.diag([1, 1, 1, 1.0])) == 2  # foot-head where spacings agree


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "voxel"}, "pool.unit is 'voxel'"),
        ({"unit": "patch"}, "needs pool.patch_voxels or pool.patch_mm"),
        ({"unit": "patch", "patch_mm": 4, "patch_voxels": 4}, "one of the two"),
        ({"unit": "patch", "patch_voxels": [4, 4]}, "one number, or one for each axis"),
        (
            {"unit": "patch", "patch_voxels": [4, 0, 4]},
            "patch_voxels along axis 1 is 0; .* least 1",
        ),
        ({"unit": "patch", "patch_voxels": -8}, "pool.patch_voxels is -8; .* at least 1"),
        ({"unit": "patch", "patch_mm": [4, 4, -1]}, "mm along axis 2 is -1; .* number above 0"),
        ({"unit": "patch", "patch_mm": 4, "slice_axis": 1}, "slice_axis is for pool.unit=slice"),
        ({"slice_axis": 0}, "pool.slice_axis is for pool.unit=slice, not for volume"),
        ({"unit": "slice", "patch_mm": 4}, "pool.patch_mm is for pool.unit=patch"),
        ({"unit": "slice", "slice_axis": 3}, "pool.slice_axis is 3"),
        ({"patch_voxels": 4}, "for pool.unit=patch, not for volume"),
    ],
)
def test_units_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UnitShape(**changes)


def test_a_unit_has_a_name() -> None:
    assert Unit("a").name == "a"
    assert Unit("a", ((0, 4), (2, 3), (5, 9))).name == "a[0:4,2:3,5:9]"
