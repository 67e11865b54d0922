"""Names in a data set: from a name in a file to a path, and from paths to case ids.

Ids come from the data set's own names. Where a name is a symbolic link, as in a clone of git-annex
or DataLad, its target is only read.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from alseg.core.errors import DataError
from alseg.data.file_types import case_of_channel, name_without_ending


def nfc(name: str) -> str:
    """A name in Unicode's composed form (NFC): a Mac's file names are decomposed."""
    return unicodedata.normalize("NFC", name)


def short(value: Any) -> str:
    """A value from a file in a message: a broken file may hold megabytes."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def inside(folder: Path, name: Any, source: Path) -> Path:
    """The path of a file that ``source`` names, which must exist in the data set's folder.

    The name never leaves the folder, by ``..`` or otherwise; a symbolic link in the folder may. The
    same name in another Unicode form and a name with backslashes, from Windows, are found as well.

    Raises:
        DataError: if there is no such regular file.
    """
    # unprintable: control characters, and bytes that are not text
    if not isinstance(name, str) or not name.isprintable():
        raise DataError(
            f"{source}: a file name must be a string of printable characters, got {short(name)}"
        )
    try:
        relative = name
        if "\\" in name and not os.path.lexists(folder / name):
            relative = PureWindowsPath(name).as_posix()
        relative = os.path.normpath(relative)
        if (
            PurePosixPath(relative).is_absolute()
            or PurePosixPath(relative).parts[:1] == ("..",)
            or ("\\" in name and PureWindowsPath(name).drive)
        ):
            raise DataError(
                f"{source} names {name}, which lies outside the data set's folder {folder}"
            )
        path = _spelt_as_on_disk(folder, relative)
        target = path.resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links
        raise DataError(f"{source} names {short(name)}, which is not a path: {error}") from error
    if path.is_symlink() and not path.exists():
        raise DataError(
            f"{source} names {name}, a link to {target}, which is not there; fetch the content "
            "first (git annex get, datalad get)"
        )
    if not is_file:
        raise DataError(f"{source} names {name}, but there is no file {path}")
    return path


def _spelt_as_on_disk(folder: Path, relative: str) -> Path:
    """The path whose parts are canonically equivalent; the plain one where there is none."""
    path = folder
    for part in PurePosixPath(relative).parts:
        if not os.path.lexists(path / part) and path.is_dir():
            same = [name for name in os.listdir(path) if nfc(name) == nfc(part)]
            part = same[0] if len(same) == 1 else part
        path = path / part
    return path


def case_id_of(path: PurePath) -> str:
    """The case id of an image path: its file name without ``.nii.gz`` or another ending."""
    return nfc(name_without_ending(path))


def case_ids_of(images: Sequence[PurePath], source: Path) -> list[str]:
    """The ids of cases by their images' paths in the data set.

    The file names, where they differ; else as much of the path as distinguishes the cases:
    ``p01/ct.nii.gz`` and ``p02/ct.nii.gz`` are p01 and p02, and with ``p01/mr.nii.gz`` beside them
    p01_ct, p02_ct and p01_mr.

    Args:
        images: relative to the data set's folder.
        source: the file that names them, for messages.

    Raises:
        DataError: if a case gets no name, or two get one.
    """
    names = [case_id_of(path) for path in images]
    if "" in names:
        raise DataError(
            f"{source} names {images[names.index('')].name}, which gives the case no name"
        )
    if len(set(names)) == len(names):
        return names
    parts = [(*map(nfc, path.parent.parts), name) for path, name in zip(images, names, strict=True)]
    first = _n_common(parts)
    last = _n_common([path[::-1] for path in parts])
    for end in (last, 0):
        ids = ["_".join(path[first : len(path) - end]) for path in parts]
        if all(ids) and len(set(ids)) == len(ids):
            return ids
    one, other = next(
        (images[i], images[ids.index(name)]) for i, name in enumerate(ids) if name in ids[:i]
    )
    raise DataError(f"{source}: the images {other} and {one} give two cases one name")


def _n_common(paths: Sequence[Sequence[str]]) -> int:
    """How many first parts all paths share; of each at least one is left."""
    shared = zip(*(path[:-1] for path in paths), strict=False)
    return next(
        (i for i, parts in enumerate(shared) if len(set(parts)) > 1),
        min(len(path) - 1 for path in paths),
    )


def matching_case(name: str, known: Collection[str]) -> str:
    """The case that a split file means by an id or an image's path; the file's name if none.

    Args:
        name: such as ``p01``, ``imagesTr/a.nii.gz`` or ``imagesTr/a_0000.nii.gz``.
        known: the ids of the data set.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    case_id = case_id_of(path)
    if case_id in known:
        return case_id
    parts = [*map(nfc, path.parent.parts), case_id]
    n = len(parts)
    meant = {"_".join(parts[i:j]) for i in range(n) for j in range(i + 1, n + 1)}
    meant.add(case_of_channel(case_id) or case_id)  # nnU-Net's channel
    return max(meant & set(known), key=len, default=case_id)
