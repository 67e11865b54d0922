"""Where a comparison goes, so that it replaces no other one."""

from __future__ import annotations

from pathlib import Path

from alseg.core.errors import ConfigError, DataError

RECORD_FILE = "comparison.json"  # beside the page: what it compares


def choose_folder(
    record: dict[str, object], wanted: Path | None, default: Path, page: str, overwrite: bool
) -> Path:
    """The folder of a comparison, which replaces no page except one of the same runs.

    A page of the same runs, or of some of them, with the same options is the same comparison, which
    is brought up to date.

    Args:
        record: what is compared, as in ``comparison.json``.
        wanted: the folder that the user names; None for the default.
        default: the folder, or if it is taken, the beginning of its name.
        page: the name of the page's file.
        overwrite: whether the folder that the user names may hold another comparison.

    Raises:
        ConfigError: if it does, and must not.
    """
    if wanted is not None:
        if not overwrite and is_taken(wanted, record, page):
            raise ConfigError(
                f"{wanted} holds a page of another comparison; name another folder, or replace it "
                "with --overwrite"
            )
        return wanted
    folder, number = default, 1
    while is_taken(folder, record, page):
        number += 1
        folder = default.with_name(f"{default.name}_{number}")
    return folder


def is_taken(folder: Path, record: dict[str, object], page: str) -> bool:
    """Whether a folder holds a page of another comparison."""
    from alseg.system.files import read_json

    if not (folder / page).exists():
        return False
    try:
        old = read_json(folder / RECORD_FILE)
        fewer = set(old.pop("runs")) <= set(record["runs"])  # type: ignore[call-overload]
    except (DataError, KeyError, TypeError):  # not a page of ours
        return True
    return not fewer or old != {key: record[key] for key in record if key != "runs"}


def clear(folder: Path, mark: str = RECORD_FILE) -> None:
    """Delete the figures and tables of the comparison before; no other file of the folder.

    Args:
        folder: of the comparison.
        mark: the file by which a folder is known for one.
    """
    if (folder / mark).is_file():
        for pattern in ("figures/*.png", "figures/*.svg", "tables/*.csv", "tables/*.tex"):
            for path in folder.glob(pattern):
                path.unlink()
