"""What is annotated, and the answers to it."""

from pathlib import Path

from alseg.core.units import Answer, Unit, whole


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
