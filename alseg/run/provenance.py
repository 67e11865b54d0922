"""Where a run's numbers come from: its log, and what each process that worked on it was.

``run.log`` holds the log lines of all processes of a run, ``provenance.json`` one entry for each of
them: the command, the time, the git commit of alseg, the versions of all packages.
"""

from __future__ import annotations

import logging
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from alseg import __version__
from alseg.core.errors import DataError
from alseg.run.folder import LOG_FILE, PROVENANCE_FILE
from alseg.system.distributed import rank
from alseg.system.files import read_json, write_json
from alseg.system.secrets import refer_to_secrets, without_secrets


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Keep the log of the block in ``run.log`` of a run folder, and how it was started beside it.

    Raises:
        DataError: if the record of an earlier process is damaged.
        StorageError: if the record cannot be written.
    """
    if rank() > 0:
        yield
        return
    start = this_process()
    path = folder / PROVENANCE_FILE
    earlier = read_json(path).get("starts") if path.is_file() else []
    if not isinstance(earlier, list):
        raise DataError(f"{path} does not say how the run was started before")
    write_json(path, {"starts": [*earlier, start]})
    handler = logging.FileHandler(folder / LOG_FILE, encoding="utf-8")
    handler.setFormatter(_WithoutSecrets("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        for line in (start["command"], f"alseg {__version__}, git {start['git']}"):
            handler.emit(logging.makeLogRecord({"msg": line, "levelname": "INFO"}))
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


class _WithoutSecrets(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def this_process() -> dict[str, Any]:
    """What this process is: command, time, commit, versions, machine."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": train_command(),
        "alseg": __version__,
        "git": git_commit(Path(__file__)) or "no checkout",
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
    }


@cache
def package_versions() -> dict[str, str]:
    """The versions of all packages that are installed."""
    found = (package.metadata for package in distributions())  # each access reads the file
    return dict(sorted((metadata["Name"], metadata["Version"]) for metadata in found))


def train_command() -> str:
    """The command that this process was started with, to be typed again."""
    return shlex.join(["python", "-m", "alseg.train", *refer_to_secrets(sys.argv[1:])])


def git_commit(file: Path) -> str | None:
    """The commit of the checkout that a file is part of, with ``-dirty`` if files differ from it.

    None where there is no such checkout, as for an installed wheel, or no git.
    """
    try:
        # a package may be installed below a checkout of something else
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        return _git(file.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=10)
    return done.stdout.strip()
