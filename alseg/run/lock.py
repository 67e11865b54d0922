"""One process works on a run folder: the lock, and who holds it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import Timeout

from alseg.core.errors import ConfigError
from alseg.run.folder import LOCK_FILE, OWNER_FILE
from alseg.run.links import check_links
from alseg.system.distributed import rank
from alseg.system.files import clean_temporaries, locked, write_atomically


@contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Hold a run folder; the lock goes with the process, however it ends.

    Who holds it stands in a file beside the lock, which the lock itself cannot hold.

    Raises:
        ConfigError: if another process holds it, or a link in it leads out of it.
    """
    if rank() > 0:
        yield
        return
    check_links(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK_FILE, blocking=False))
        except Timeout:
            owner = _owner(folder)
            by = f"process {owner[0]} on {owner[1]}" if owner else "another process"
            raise ConfigError(f"{folder} is in use by {by}") from None
        stack.callback((folder / OWNER_FILE).unlink, missing_ok=True)
        clean_temporaries(folder)
        write_owner(folder)
        yield


def write_owner(folder: Path) -> None:
    """Write beside the lock which process works on a run folder."""
    content = {"process": os.getpid(), "host": socket.gethostname()}
    write_atomically(folder / OWNER_FILE, json.dumps(content))


def owner_is_dead(folder: Path) -> bool:
    """Whether the process that works on a run folder was one of this machine and is no more."""
    owner = _owner(folder)
    if owner is None or owner[1] != socket.gethostname():
        return False
    try:
        os.kill(owner[0], 0)  # sends nothing
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's
        return False
    return False


def _owner(folder: Path) -> tuple[int, str] | None:
    """The process and the host beside the lock; None if there are none to be read."""
    try:
        content = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
        return int(content["process"]), str(content["host"])
    except (OSError, ValueError, KeyError, TypeError):  # it is about to be written, or was deleted
        return None
