"""A folder that a command writes: it is there as a whole, and takes no other one's place."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alseg.core.errors import ConfigError
from alseg.system.files import TEMPORARY, name_file_in_errors


def check_new(setting: str, folder: Path) -> None:
    """Check that nothing would be overwritten.

    Args:
        setting: that names the folder.
        folder: the folder.

    Raises:
        ConfigError: if the folder is a file, or holds something.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{setting} is {folder}, which is not an empty folder; give a new one")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which at the end of the block becomes ``folder``.

    Raises:
        StorageError: if it cannot be written.
    """
    with name_file_in_errors(folder):
        temporary = folder.absolute().with_name(f"{TEMPORARY}{secrets.token_hex(8)}-{folder.name}")
        try:
            temporary.mkdir(parents=True)
            yield temporary
            os.replace(temporary, folder)  # takes the place of an empty folder, of no other one
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
