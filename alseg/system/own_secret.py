"""Secrets of the user's own, in the user's configuration folder and outside of all data."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from alseg.core.errors import DataError
from alseg.system.files import name_file_in_errors


def own_secret(name: str) -> bytes:
    """A secret of the user's, made when it is first asked for, readable by the user only.

    Args:
        name: of its file.

    Raises:
        DataError: if the file has been cut off.
        StorageError: if it cannot be made.
    """
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    path = Path(home) / "alseg" / name
    with name_file_in_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_hex(32).encode())
        except FileExistsError:
            pass  # made before
        secret = path.read_bytes()
    if len(secret) < 32:
        raise DataError(f"{path} is too short to be a secret; delete it")
    return secret
