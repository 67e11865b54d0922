"""Files that are whole or not there: atomic writes, checksums, errors that name the file.

A file is written beside its place, flushed to the disk and renamed, so that a process killed at any
moment leaves the old file or the new one. What a disk or a transfer spoils later is found by the
checksum when the file is read. In a folder that others may write, no link that they have put there
is followed: the temporary file is a new one with a random name, or none at all.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from filelock import FileLock

from alseg.core.errors import NO_ROOM, DataError, DiskFullError, StorageError
from alseg.system.distributed import rank

log = logging.getLogger(__name__)

T = TypeVar("T")

TEMPORARY = ".tmp-"  # begins the names of files that are not complete
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
PREVIOUS = ".previous"  # ends the name of the generation before


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Turn an error of the file system into one that names the file and the room that is left.

    Raises:
        StorageError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        kind = DiskFullError if error.errno in NO_ROOM else StorageError
        raise kind(f"cannot write {path}: {error.strerror or error}{_room(path)}") from error


@contextmanager
def locked(path: Path, *, blocking: bool = True) -> Iterator[None]:
    """Hold a lock file in the block; the lock goes with the process, however it ends.

    On a file system without locks, such as some NFS and Lustre mounts, there is a warning only.

    Args:
        path: the lock file.
        blocking: whether to wait for another process that holds it.

    Raises:
        filelock.Timeout: if another process holds it, and is not to be waited for.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=blocking)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning(
            f"the file system of {path.parent} has no locks ({error.strerror}): let no two runs "
            "use it at the same time"
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file, open for writing, that takes the place of ``path`` at the end of the block.

    Raises:
        StorageError: if it cannot be written; what was at ``path`` is left as it was.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}-{path.name}")
    with name_file_in_errors(path):
        # "x": neither an existing file nor a link is opened
        with temporary.open("xb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, survives a power failure
        finally:
            os.close(folder)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file (UTF-8) atomically; under torchrun only the first process writes.

    Raises:
        StorageError: if it cannot be written.
    """
    if rank() > 0:
        return
    with replacing(path) as file:
        file.write(text.encode())


def clean_temporaries(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder that this process holds."""
    if rank() > 0:
        return
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path stays in a folder, with all links followed."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except ValueError:  # a NUL, which no path has
        return False


def previous(path: Path) -> Path:
    """Where the generation before a file is kept."""
    return path.with_name(path.name + PREVIOUS)


def newest_intact(
    path: Path, read: Callable[[Path], T], report: Callable[[str], None]
) -> tuple[Path, T] | None:
    """The file, or where it is damaged or missing the generation before; None if neither is sound.

    Args:
        path: the file.
        read: reads it; raises a DataError if it is damaged.
        report: called for each damaged file.
    """
    for candidate in (path, previous(path)):
        if candidate.is_file():
            try:
                return candidate, read(candidate)
            except DataError as error:
                report(str(error))
    return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with its checksum, in the field ``sha256``; atomically.

    Raises:
        StorageError: if it cannot be written.
    """
    write_atomically(path, json.dumps(content | {"sha256": _digest(content)}, indent=1))


def read_json(path: Path, *, by_hand: bool = True) -> dict[str, Any]:
    """Read a JSON object; one that has a checksum must agree with it.

    Args:
        path: the file.
        by_hand: whether a person may have written it; if not, it must have a checksum.

    Raises:
        DataError: if it cannot be read, is no JSON object, was changed or lacks its checksum.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} does not hold a JSON object")
    checksum = content.pop("sha256", None)
    if checksum is None and not by_hand:
        raise DataError(f"{path} is damaged: the checksum with which alseg writes it is missing")
    if checksum not in (None, _digest(content)):
        raise DataError(f"{path} is damaged: its checksum does not agree with its content")
    return content


def write_tensors(path: Path, content: Any) -> None:
    """Write what ``torch.save`` takes, with a checksum behind it; atomically.

    The file is read by ``torch.load`` as well, which does not look behind the archive's end.

    Raises:
        StorageError: if it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = buffer.getbuffer()
    with replacing(path) as file:
        file.write(archive)
        file.write(_crc(archive))


def read_tensors(path: Path) -> Any:
    """Read what ``write_tensors`` wrote, onto the CPU; nothing except tensors is unpickled.

    Raises:
        DataError: if it cannot be read or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    length = len(_crc(b""))
    if content[-length:] != _crc(memoryview(content)[:-length]):
        raise DataError(f"{path} is damaged: its checksum does not agree with its content")
    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load lets pickle, zip and runtime errors through
        raise DataError(f"{path} cannot be read: {error}") from error


def checksum_of(path: Path) -> str:
    """The checksum of a file's content; empty if it cannot be read."""
    try:
        return checksum(path.read_bytes())
    except OSError:
        return ""


def checksum(content: bytes) -> str:
    """The checksum of some bytes, as ``checksum_of`` a file that holds them."""
    return f"{zlib.crc32(content):08x}"


def _crc(content: Any) -> bytes:
    return b"\ncrc32 %08x\n" % zlib.crc32(content)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _room(path: Path) -> str:
    """The room on the path's disk, where it is known."""
    existing = next((p for p in path.parents if p.exists()), None)
    if existing is None:
        return ""
    return f" ({shutil.disk_usage(existing).free / 2**20:.0f} MiB are free on its disk)"
