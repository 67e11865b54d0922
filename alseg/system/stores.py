"""Addresses of tracking stores."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlparse

STORE_VARIABLE = "MLFLOW_TRACKING_URI"  # MLflow's own


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite store; None for another kind of store."""
    parsed = urlparse(uri)
    # sqlite:///relative, sqlite:////absolute
    return Path(parsed.path.removeprefix("/")) if parsed.scheme == "sqlite" else None


def environment_store() -> str | None:
    """The store that the environment names, as MLflow has it; None if it names none."""
    return os.environ.get(STORE_VARIABLE) or None


def default_store(output_dir: str = "runs") -> str:
    """The store that is used where none is given: the environment's, else one of our own."""
    return environment_store() or f"sqlite:///{output_dir}/mlflow.db"
