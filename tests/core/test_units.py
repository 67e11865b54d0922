"""Units by name, regions out of text and JSON, and pools that are labelled in part."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alseg.core.pool import Pool
from alseg.core.units import (
    Answer,
    Region,
    Unit,
    as_region,
    overlap,
    region_from_text,
    whole,
)

sides = st.tuples(st.integers(0, 50), st.integers(1, 20)).map(lambda s: (s[0], s[0] + s[1]))
boxes = st.tuples(sides, sides, sides)
LABEL = Path("label.nii.gz")


def test_units_are_whole_volumes_or_regions_of_them() -> None:
    assert whole(["b", "a"]) == (Unit("b"), Unit("a"))
    region = ((0, 4), (2, 3), (0, 9))
    assert Unit("a", region) != Unit("a")
    assert len({Unit("a", region), Unit("a", region), Unit("a")}) == 2


def test_a_case_is_annotated_once_it_is_so_as_a_whole() -> None:
    part = Unit("b", ((0, 4), (2, 3), (0, 9)))
    answer = Answer({Unit("c"): Path("c"), part: Path("b"), Unit("a"): Path("a")})
    assert list(answer.by_case.items()) == [("c", Path("c")), ("a", Path("a"))]
    assert answer.pending == ()


@given(boxes)
def test_a_region_is_what_its_text_and_its_json_say(region: Region) -> None:
    unit = Unit("a_1", region)
    assert unit.where is not None
    assert region_from_text(unit.where) == region
    assert as_region(asdict(unit)["region"]) == as_region([list(s) for s in region]) == region
    assert unit.name == f"a_1[{unit.where}]"


@given(boxes, boxes)
def test_regions_overlap_if_they_share_a_voxel(a: Region, b: Region) -> None:
    shared = all(set(range(*p)) & set(range(*q)) for p, q in zip(a, b, strict=True))
    assert overlap(a, b) == overlap(b, a) == shared


@pytest.mark.parametrize(
    "edges", [[], [[0, 1]] * 2, [[0, 1]] * 4, [[1, 1]] * 3, [[-1, 1]] * 3, [[0, 1.0]] * 3, 5, "abc"]
)
def test_what_is_no_box_is_refused(edges: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        as_region(edges)


def box(start: int) -> Region:
    return ((start, start + 2), (0, 2), (0, 2))


def test_a_case_with_regions_is_labelled_and_stays_incomplete() -> None:
    pool = Pool.start(["a", "b", "c"], [])
    units = (Unit("b", box(0)), Unit("a"), Unit("b", box(2)))
    pool = pool.after(Answer(dict.fromkeys(units, LABEL)))
    assert pool.labelled == ("b", "a")
    assert pool.unlabelled == ("c",)
    assert pool.incomplete == ("b", "c")
    assert pool.regions_of("b") == (box(0), box(2))
    assert pool.regions_of("a") == ()
    assert pool.units == (Unit("a"), Unit("b", box(0)), Unit("b", box(2)))
    pool = pool.after(Answer({Unit("b", box(4)): LABEL}))
    assert pool.labelled == ("b", "a")
    assert pool.repeated == ()
    assert len(pool.units) == 4


def test_pools_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"b\[0:2,0:2,0:2\] is not a region of a labelled case"):
        Pool(("a",), ("b",), regions=(Unit("b", box(0)),))
    with pytest.raises(ValueError, match="a is not a region"):
        Pool(("a",), ("b",), regions=(Unit("a"),))
    with pytest.raises(ValueError, match=r"a\[1:3,0:2,0:2\] overlaps another one"):
        Pool(("a",), ("b",), regions=(Unit("a", box(0)), Unit("a", box(1))))
