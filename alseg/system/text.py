"""Text from data sets, paths and run folders, made fit for where it goes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any


def printable(text: str) -> str:
    """A text with what a terminal would act on, or cannot show, as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def literal(content: Any, restore: Callable[[str], str] = str) -> Any:
    """Texts, also in nested dicts and lists, for OmegaConf to give back as they are.

    Args:
        content: a text, a dict or a list; anything else is given back.
        restore: makes references of some of the texts' parts again.
    """
    if isinstance(content, str):
        # written \${, with backslashes before it doubled
        return restore(re.sub(r"(\\*)\$\{", lambda found: rf"{2 * found[1]}\${{", content))
    if isinstance(content, dict):
        return {key: literal(value, restore) for key, value in content.items()}
    if isinstance(content, list):
        return [literal(value, restore) for value in content]
    return content


def capitalised(text: str) -> str:
    """A text with a capital at its start; the rest stays as it is."""
    return text[:1].upper() + text[1:]
