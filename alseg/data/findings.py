"""What is found in a data set: by case, or of the data set as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

N_NAMED = 5  # names that a sentence lists


@dataclass(frozen=True)
class Finding:
    """Something to know about the data, of a ``level`` and with a ``kind`` of a word or two.

    The level is error, warning, or note, which is about what the data set says of itself.
    """

    level: str
    kind: str
    message: str


def warning(kind: str, message: str) -> Finding:
    """A finding that keeps nothing from being used."""
    return Finding("warning", kind, message)


def listed(names: Sequence[str]) -> str:
    """The first names of a list, for a sentence."""
    return ", ".join(names[:N_NAMED]) + ", ..." * (len(names) > N_NAMED)


def in_mm(edges: Iterable[float]) -> str:
    """Lengths along axes, such as 1 x 1 x 2.5 mm."""
    return " x ".join(f"{edge:.3g}" for edge in edges) + " mm"
