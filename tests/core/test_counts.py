"""Numbers of things, for sentences."""

import pytest

from alseg.core.counts import counted


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (1, ("volume",), "1 volume"),
        (2, ("volume",), "2 volumes"),
        (0, ("volume",), "0 volumes"),
        (3, ("patch",), "3 patches"),
        (3, ("pass",), "3 passes"),
        (3, ("strategy",), "3 strategies"),
        (1, ("case has", "cases have"), "1 case has"),
        (2, ("case has", "cases have"), "2 cases have"),
    ],
)
def test_what_is_counted_is_in_the_singular_for_one(
    number: int, words: tuple[str, ...], text: str
) -> None:
    assert counted(number, *words) == text
