"""Addresses of tracking stores."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite store; None for another kind of store."""
    parsed = urlparse(uri)
    # sqlite:///relative, sqlite:////absolute
    return Path(parsed.path.removeprefix("/")) if parsed.scheme == "sqlite" else None
