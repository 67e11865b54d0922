"""Addresses of tracking stores."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlparse


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite store; None for another kind of store."""
    parsed = urlparse(uri)
    # sqlite:///relative, sqlite:////absolute
    return Path(parsed.path.removeprefix("/")) if parsed.scheme == "sqlite" else None


def without_secrets(uri: str) -> str:
    """An address to be shown: its user and password are masked."""
    parsed = urlparse(uri)
    return uri.replace(f"{parsed.username}:{parsed.password}@", "***@") if parsed.password else uri


def environment_store() -> str | None:
    """The store that the environment names, as MLflow has it; None if it names none."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def default_store(output_dir: str = "runs") -> str:
    """The store that is used where none is given: the environment's, else one of our own."""
    return environment_store() or f"sqlite:///{output_dir}/mlflow.db"
