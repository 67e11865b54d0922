"""Labels that people have put into the request folders of a run, once they are complete there."""

from __future__ import annotations

import csv
import glob
import io
import math
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from alseg.core.errors import DataError
from alseg.data.file_types import ANSWER_ENDINGS, name_without_ending
from alseg.data.findings import listed
from alseg.run.folder import ANSWERS_FILE, ANSWERS_FOLDER, REQUEST_TABLE, REQUESTS_FOLDER
from alseg.system.files import write_atomically

CONFIRMED = ".confirmed"  # behind the case, the name of the empty file that confirms a label
_SLICER_SEGMENTATION = ".seg.nrrd"  # may be cropped, and numbers segments as it likes


@dataclass(frozen=True)
class AnswerFile:
    """A label file that somebody has handed in.

    Attributes:
        case_id: the name of the file, without its ending.
        path: the file.
        folder: the name of the request folder that it lies in.
        state: the file's size and time of change.
        confirmed: whether somebody has confirmed what looks like a mistake.
        annotator: who made it, as ``answers.csv`` says; empty if that says nothing.
        minutes: that the volume has taken so far, from there; None if that says nothing.
    """

    case_id: str
    path: Path
    folder: str
    state: tuple[int, int]
    confirmed: bool
    annotator: str
    minutes: float | None


@dataclass
class FoundAnswers:
    """What one look into the request folders has found.

    Attributes:
        complete: the files that are complete, by request and name.
        arriving: the files that are still changing.
        remarks: what is there and is not used, a sentence each.
    """

    complete: list[AnswerFile] = field(default_factory=list)
    arriving: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


class AnswerFiles:
    """Looks into ``labels/final`` of all request folders of a run.

    A file counts as complete when its size and its time of change have stayed the same for
    ``settle_seconds``, which takes two looks: a file that is being copied is left to be.

    Args:
        run_folder: the run's.
        case_ids: of the data set.
        settle_seconds: how long a file must have stayed the same.
    """

    def __init__(self, run_folder: Path, case_ids: Container[str], settle_seconds: float) -> None:
        self.run_folder = run_folder
        self.case_ids = case_ids
        self.settle_seconds = settle_seconds
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}  # state, and since when

    def look(self) -> FoundAnswers:
        """Look once."""
        found = FoundAnswers()
        for folder in sorted((self.run_folder / REQUESTS_FOLDER).glob(f"*/{ANSWERS_FOLDER}")):
            self._look_into(folder, folder.parent.parent.name, found)
        return found

    def wait_and_look(self) -> FoundAnswers:
        """Look, and a second time if a file has come that may still be changing."""
        found = self.look()
        if found.arriving:
            time.sleep(self.settle_seconds)
            found = self.look()
        return found

    def _look_into(self, folder: Path, request: str, found: FoundAnswers) -> None:
        by_case: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()):
            if path.name == ANSWERS_FILE or path.name.startswith("."):
                continue
            if path.name.endswith(_SLICER_SEGMENTATION):
                found.remarks.append(
                    f"{path} is not read: it is a segmentation of 3D Slicer, which is no label "
                    "yet; there, Export to files writes one, as CASE.nii.gz"
                )
            elif path.name.endswith(ANSWER_ENDINGS):
                by_case.setdefault(name_without_ending(path), []).append(path)
            elif CONFIRMED not in path.name:
                found.remarks.append(
                    f"{path} is not read: save labels as CASE.nii.gz, .nii or .nrrd"
                )
        details = details_of_answers(folder / ANSWERS_FILE, self.case_ids, found.remarks)
        for case_id, paths in by_case.items():
            if len(paths) > 1:
                found.remarks.append(f"{paths[0]} and {paths[1].name} are of one case: delete one")
            elif paths[0].is_symlink() or not paths[0].is_file():
                found.remarks.append(f"{paths[0]} is not read: it must be a file, and no link")
            elif (state := self._settled(paths[0])) is None:
                found.arriving.append(paths[0])
            else:
                confirmed = any(folder.glob(f"{glob.escape(case_id)}{CONFIRMED}*"))
                who, minutes = details.get(case_id, ("", None))
                answer = AnswerFile(case_id, paths[0], request, state, confirmed, who, minutes)
                found.complete.append(answer)

    def _settled(self, path: Path) -> tuple[int, int] | None:
        """The state of a file that has stayed the same long enough; None for another one."""
        try:
            stat = path.stat()
        except FileNotFoundError:  # renamed since it was listed
            return None
        state, now = (stat.st_size, stat.st_mtime_ns), time.monotonic()
        before, since = self._seen.get(path, (None, now))
        if before != state:
            since = now
            self._seen[path] = (state, since)
        return state if now - since >= self.settle_seconds else None


def details_of_answers(
    path: Path, case_ids: Container[str], remarks: list[str]
) -> dict[str, tuple[str, float | None]]:
    """Annotator and minutes of each case, from ``answers.csv``: case, annotator, minutes.

    Args:
        path: the table; it may be missing, and any spreadsheet program may have written it.
        case_ids: of the data set; the name of a case's file is as good.
        remarks: what cannot be used of it is added to them.
    """
    details: dict[str, tuple[str, float | None]] = {}
    if not path.is_file():
        return details
    unknown, line = [], 1
    try:
        for line, row in _table(path):
            name = row.get("case", "")
            case_id = name if name in case_ids else name_without_ending(PurePath(name))
            if case_id in case_ids:
                details[case_id] = (row.get("annotator", ""), _minutes(row))
            elif any(row.values()):
                unknown.append(f"{name or 'no name'} in line {line}")
    except (OSError, ValueError, csv.Error) as error:
        remarks.append(f"{path} is not used from line {line} on: {error}")
    if unknown:
        remarks.append(
            f"{path} has rows that are of no case of the data set, and are not used: "
            f"{listed(unknown)}; name the cases as {REQUEST_TABLE} does"
        )
    return details


def say_of_answer(path: Path, case_id: str, annotator: str, minutes: float) -> None:
    """Write who made a label, in how many minutes, into ``answers.csv``; other rows stay.

    Args:
        path: the table; it may be missing.
        case_id: the case.
        annotator: one line of text.
        minutes: that the volume has taken so far.

    Raises:
        DataError: if the table that is there cannot be read.
        StorageError: if it cannot be written.
    """
    try:
        rows = [row for _, row in _table(path)] if path.is_file() else []
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read, mend it or move it away: {error}") from error
    rows = [row for row in rows if row["case"] != case_id]
    rows.append({"case": case_id, "annotator": annotator, "minutes": f"{minutes:.2f}"})
    columns = list(dict.fromkeys(["case", "annotator", "minutes", *(k for r in rows for k in r)]))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomically(path, text.getvalue())


def _table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table, each with the number of its last line; names are in lower case."""
    lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    if not lines or "case" not in (names := lines[0].lower()):
        raise ValueError("its first line must be case,annotator,minutes")
    separator = max(",;\t", key=names.count)
    rows = csv.reader(lines, delimiter=separator)
    header = [name.strip().lower() for name in next(rows)]
    for row in rows:
        yield rows.line_num, dict(zip(header, map(in_one_line, row), strict=False))


def in_one_line(text: str) -> str:
    """A text with a space wherever it has a line break, or several spaces."""
    return " ".join(text.split())


def _minutes(row: dict[str, str]) -> float | None:
    text = row.get("minutes", "").replace(",", ".")
    if not text:
        return None
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 <= minutes < math.inf:
        raise ValueError(
            f"the minutes of {row.get('case')} are {text}; they must be a number of at least 0"
        )
    return minutes
