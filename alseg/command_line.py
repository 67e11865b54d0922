"""Commands as text: what is printed to be pasted into a shell, and what identifies a job."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf

from alseg.text import literal


def override(name: str, value: str | Path | Sequence[str]) -> str:
    """``name=value`` for Hydra: the value is taken as it is, whatever characters it holds."""
    if isinstance(value, (str, Path)):
        return f"{name}={_quoted(str(value))}"
    return f"{name}=[{','.join(map(_quoted, value))}]"


def _quoted(text: str) -> str:
    return QuotedString(literal(text), Quote.single).with_quotes()


def override_to_paste(name: str, value: str | Path) -> str:
    """``name=value`` to be typed into a shell, with quotes where they are needed."""
    # a slash: neither a number nor a word of Hydra's own, such as null
    is_plain = re.fullmatch(r"[\w./-]*/[\w./-]*", str(value), re.ASCII)
    return f"{name}={value}" if is_plain else shlex.quote(override(name, value))


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


OmegaConf.register_new_resolver("job_hash", job_hash, replace=True)
