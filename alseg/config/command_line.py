"""Commands as text: what is printed to be pasted into a shell, and what identifies a job."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from alseg.system.text import literal


def override(name: str, value: str | Path | Sequence[str]) -> str:
    """``name=value`` for Hydra: the value is taken as it is, whatever characters it holds."""
    if isinstance(value, (str, Path)):
        return f"{name}={_quoted(str(value))}"
    return f"{name}=[{','.join(map(_quoted, value))}]"


def _quoted(text: str) -> str:
    return QuotedString(literal(text), Quote.single).with_quotes()


def with_run(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command whose first one may be a run folder: ``run=`` is put before it."""
    first = next((a for a in arguments if not a.startswith("-")), None)
    if first is None or ("=" in first and not Path(first).is_dir()):
        return list(arguments)
    place = list(arguments).index(first)
    return [*arguments[:place], override("run", first), *arguments[place + 1 :]]


def override_to_paste(name: str, value: str | Path) -> str:
    """``name=value`` to be typed into a shell, with quotes where they are needed."""
    # a slash: neither a number nor a word of Hydra's own, such as null
    if re.fullmatch(r"[\w./-]*/[\w./-]*", str(value), re.ASCII):
        return f"{name}={value}"
    quoted = override(name, value)
    # double quotes around Hydra's single ones are easier to read than what shlex.quote gives
    return shlex.quote(quoted) if re.search(r'["$`\\!\n]', quoted) else f'"{quoted}"'


def readable(argument: str) -> str:
    """An argument of the command line with the quotes that Hydra wants around some characters.

    It wants them around letters beyond ASCII, ``=``, ``#``, ``&`` and others. A value that can be a
    list, a choice of several or already quoted is left as it is, and so is what Hydra reads.
    """
    name, separator, value = argument.partition("=")
    if not separator or re.search(r"""^~|['"\[\]{}(),]""", value) or _is_readable(argument):
        return argument
    quoted = override(name, value)
    return quoted if _is_readable(quoted) else argument


def _is_readable(argument: str) -> bool:
    try:
        OverridesParser.create().parse_overrides([argument])
    except HydraException:
        return False
    return True


def how_to_quote(argument: str) -> str:
    """What to do about an argument that Hydra cannot read, or could read in two ways."""
    name, separator, value = argument.partition("=")
    if not separator:
        return f"{argument} is not a setting; one is given as name=value"
    if value.startswith("~"):
        return f"{argument}: the shell leaves this ~ as it is; write {name}=$HOME{value[1:]}"
    text = value.strip("'\"")
    if not _is_readable(override(name, text)):
        return f"{argument}: no setting can be called {name}"
    problem = (
        "has several values, which takes a sweep (-m)"
        if _is_readable(argument)
        else ("cannot be read")
    )
    quoted = override_to_paste(name, text)
    cut = (
        "a list ends with ], and the shell cuts at spaces unless the whole setting is in quotes; "
        if value.startswith("[") and "]" not in value
        else ""
    )
    return f"{argument} {problem}; {cut}if the value is one text, put it in quotes: {quoted}"


def with_later(before: Sequence[str], later: Sequence[str]) -> list[str]:
    """Overrides of Hydra's, followed by those of a later command, which replace their like.

    What is chosen again with ``group=choice`` keeps the values that were given under the group. A
    setting that was added with ``+`` stays added where a later command gives it another value.
    """
    kept = list(before)
    for override in later:
        kept = [old for old in kept if not _replaces(override, old)]
        kept.append(override)
    return kept


def _replaces(override: str, old: str) -> bool:
    (name, _, value), (old_name, _, old_value) = override.partition("="), old.partition("=")
    if value.startswith("{") or old_value.startswith("{"):
        return override == old  # it is merged into what is there, be that a choice or a value
    if name.startswith("+"):
        return name.lstrip("+") == old_name.lstrip("+~")
    return name == old_name


def typed(overrides: Any) -> list[str]:
    """A list of overrides in Hydra's configuration as they were typed: reading it resolves them."""
    raw: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(override) for override in raw]


def identifying(overrides: Sequence[str]) -> list[str]:
    """The overrides that say what a job or a sweep computes, in an order of their own."""
    return sorted(o for o in overrides if not o.startswith(("sweep.", "resume=")))


def job_hash(overrides: Sequence[str]) -> str:
    """A short hash of a job's overrides: its folder has the same name whenever it is started."""
    return hashlib.sha256(json.dumps(identifying(overrides)).encode()).hexdigest()[:8]
