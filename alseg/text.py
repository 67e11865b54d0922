"""Text from data sets and run folders, made fit to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text with what a terminal would act on, or cannot show, as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
