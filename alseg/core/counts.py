"""Numbers of things, for sentences."""

from __future__ import annotations

from collections.abc import Iterable


def counted(number: int, one: str, several: str = "") -> str:
    """A number and what it counts, such as ``1 volume`` and ``3 volumes``.

    Args:
        number: how many there are.
        one: what one of them is called, also with words that agree with it: ``case has``.
        several: what more, or none, are called; by default the plural of the last word of ``one``.
    """
    return f"{number} {one if number == 1 else several or _plural(one)}"


def by(shape: Iterable[int]) -> str:
    """Numbers along axes, of voxels for instance, such as 512 x 512 x 90."""
    return " x ".join(map(str, shape))


def _plural(noun: str) -> str:
    if noun.endswith("y"):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"
