"""The labels that people have made for a run: each version of each, and who made it when.

A version is a file of its own, which is never written again. It counts once ``history.csv`` has its
row: a process that is killed between the two leaves a file that counts for nothing, and the next
version of that case takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from alseg.core.errors import DataError
from alseg.run.folder import (
    ANNOTATIONS_FOLDER,
    ANNOTATIONS_LOCK,
    HISTORY_FILE,
    SUMMARY_FILE,
    USED_FILE,
)
from alseg.system.files import checksum_of, clean_temporaries, is_within, locked, write_atomically


@dataclass(frozen=True)
class Annotation:
    """One accepted version of a label: a row of ``annotations/history.csv``.

    Attributes:
        case: the case.
        version: from 1.
        file: the label, relative to the folder of annotations.
        annotator: who made it; empty if nobody said.
        time: when it was accepted, ISO 8601.
        minutes: that the volume had taken by then, all versions together; None if nobody said.
        checksum: of the file.
        received: the checksum of the file as it was handed in.
        request: what it is an answer to; empty if it was not asked for.
        folder: the name of the request folder that it was handed in to.
        proposal_dice: its Dice with what was proposed; None without a proposal.
    """

    case: str
    version: int
    file: str
    annotator: str
    time: str
    minutes: float | None
    checksum: str
    received: str
    request: str
    folder: str
    proposal_dice: float | None


COLUMNS = [field.name for field in fields(Annotation)]


class Annotations:
    """What has been accepted, in ``annotations/`` of a run folder.

    Args:
        run_folder: the run's.
    """

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder / ANNOTATIONS_FOLDER

    @property
    def history(self) -> list[Annotation]:
        """All versions, in the order in which they were accepted.

        Raises:
            DataError: if ``history.csv`` is damaged.
        """
        path = self.folder / HISTORY_FILE
        return [_annotation(path, row) for row in _rows(path, COLUMNS)]

    def newest(self) -> dict[str, Annotation]:
        """The newest version for each case."""
        return {each.case: each for each in self.history}

    def add(
        self,
        case_id: str,
        write: Callable[[Path], None],
        *,
        received: str,
        annotator: str = "",
        minutes: float | None = None,
        request: str = "",
        folder: str = "",
        proposal_dice: float | None = None,
    ) -> Annotation:
        """Add a version; see ``Annotation``.

        Args:
            case_id: the case.
            write: writes the label, as ``.nii.gz``, to the path that it is given; atomically.
            received: the checksum of the file as it was handed in.
            annotator: who made it.
            minutes: that the volume has taken so far.
            request: what it answers.
            folder: that it was handed in to.
            proposal_dice: with what was proposed.
        """
        (self.folder / case_id).mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ANNOTATIONS_LOCK):
            history = self.history
            version = 1 + sum(each.case == case_id for each in history)
            path = self.folder / case_id / f"{version:02d}.nii.gz"
            clean_temporaries(path.parent)
            write(path)
            added = Annotation(
                case=case_id,
                version=version,
                file=path.relative_to(self.folder).as_posix(),
                annotator=annotator,
                time=datetime.now().astimezone().isoformat(timespec="seconds"),
                minutes=minutes,
                checksum=checksum_of(path),
                received=received,
                request=request,
                folder=folder,
                proposal_dice=proposal_dice,
            )
            _write(self.folder / HISTORY_FILE, [asdict(each) for each in (*history, added)])
        return added

    def amend(self, annotation: Annotation, annotator: str, minutes: float | None) -> None:
        """Note who made a version, and in how many minutes, where that was not known before."""
        amended = replace(
            annotation,
            annotator=annotation.annotator or annotator,
            minutes=minutes if annotation.minutes is None else annotation.minutes,
        )
        if amended == annotation:
            return
        with locked(self.folder / ANNOTATIONS_LOCK):
            history = [amended if each == annotation else each for each in self.history]
            _write(self.folder / HISTORY_FILE, [asdict(each) for each in history])

    def summary(self) -> pd.DataFrame:
        """What has come of each request: a row each, in the order of time; also a file.

        Returns:
            ``request``; ``annotated``, the number of cases; ``minutes``, the mean of their totals
            where they are known; ``proposal_dice``, the mean Dice of the proposals with the newest
            labels.
        """
        history = self.history
        minutes, newest = minutes_by_case(history), {each.case: each for each in history}
        rows = [asdict(each) | {"minutes": minutes.get(i)} for i, each in newest.items()]
        table = (
            pd.DataFrame(rows, columns=COLUMNS)
            .astype({"minutes": float, "proposal_dice": float})
            .groupby("request", sort=False)
            .agg(
                annotated=("case", "size"),
                minutes=("minutes", "mean"),
                proposal_dice=("proposal_dice", "mean"),
            )
            .reset_index()
        )
        write_atomically(self.folder / SUMMARY_FILE, table.to_csv(index=False))
        return table

    def path(self, annotation: Annotation) -> Path:
        """The label file of a version.

        Raises:
            DataError: if it is not what was accepted.
        """
        path = self.folder / annotation.file
        if not is_within(path, self.folder) or checksum_of(path) != annotation.checksum:
            raise DataError(
                f"{path} is damaged or missing: it is not the label that was accepted for "
                f"{annotation.case} as version {annotation.version}; put that file back"
            )
        return path

    def minutes(self, label: Path) -> float | None:
        """The minutes that a volume had taken with this version of its label; None if not known.

        Args:
            label: a file that ``path`` has given; any other one has taken 0 minutes.
        """
        history = self.history
        this = next((each for each in history if self.folder / each.file == label), None)
        if this is None:
            return 0.0
        until = [e for e in history if e.case == this.case and e.version <= this.version]
        return minutes_by_case(until).get(this.case)

    def for_round(self, round_number: int, case_ids: Iterable[str]) -> dict[str, Path]:
        """The versions that a round works with: the newest ones when it is first asked about.

        Which ones they were stands in ``used.csv``, so that a round that is resumed keeps them.

        Args:
            round_number: the round.
            case_ids: its labelled cases; those that nobody has annotated here are left out.
        """
        path = self.folder / USED_FILE
        wanted, newest = set(case_ids), self.newest()
        rows = _rows(path, ["round", "case", "version"])
        if not all(row["round"].isdecimal() and row["version"].isdecimal() for row in rows):
            raise DataError(f"{path} is damaged: a round or a version in it is no number")
        used = {r["case"]: int(r["version"]) for r in rows if int(r["round"]) == round_number}
        chosen = {i: used.get(i, newest[i].version) for i in sorted(wanted & set(newest))}
        if chosen.items() - used.items():
            others = [row for row in rows if int(row["round"]) != round_number]
            new = [{"round": round_number, "case": i, "version": v} for i, v in chosen.items()]
            _write(path, [*others, *new])
        versions = {(each.case, each.version): each for each in self.history}
        if unknown := [each for each in chosen.items() if each not in versions]:
            raise DataError(
                f"{path} names version {unknown[0][1]} of {unknown[0][0]}, which {HISTORY_FILE} "
                "beside it does not have"
            )
        return {i: self.path(versions[i, version]) for i, version in chosen.items()}


def minutes_by_case(history: Iterable[Annotation]) -> dict[str, float]:
    """The minutes that each volume has taken so far, of which somebody has said it.

    What is said of a version is the total of its volume, so that a volume counts once: with what
    was said of its newest version, or of the newest one of which anything was said.

    Args:
        history: versions in the order in which they were accepted.
    """
    return {each.case: each.minutes for each in history if each.minutes is not None}


def _rows(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if list(table.columns) != columns:
        raise DataError(f"{path} has the columns {list(table.columns)}, not {columns}")
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def _annotation(path: Path, row: dict[str, str]) -> Annotation:
    try:
        numbers = {
            name: float(row[name]) if row[name] else None for name in ("minutes", "proposal_dice")
        }
        if not all(0 <= value < math.inf for value in numbers.values() if value is not None):
            raise ValueError("minutes and Dice must be numbers of at least 0")
        return Annotation(**{**row, **numbers, "version": int(row["version"])})  # type: ignore[arg-type]
    except ValueError as error:
        raise DataError(f"{path}: the row of {row['case']} is damaged: {error}") from error


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    write_atomically(path, pd.DataFrame(rows).to_csv(index=False))
