"""Sends to a tracking store what it does not have of a run folder.

All that is sent is derived from the folder's files, so it does not matter which process sends it,
or when: during the run, on its end, or later, after the store was away. What is missing is found by
asking the store. So nothing is kept for it, and nothing comes twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from alseg.run.folder import TRACKING_FILE
from alseg.system.files import is_within
from alseg.tracking.record import Point, RoundRecord, RunRecord, Span, curve_points, round_points


@dataclass(frozen=True)
class Entry:
    """What a store should have of a run, or of one of its rounds.

    Attributes:
        span: when it started and ended.
        points: reads its metrics.
        tags: given to it when the store gets it.
        origin: of a run: folder, command, program and user of the process that started it.
        settings: of a run.
        failure: why a run failed; else empty.
        number: of the round; 0 for the run as a whole.
        run: the entry of the run that a round is part of.
    """

    span: Span
    points: Callable[[], list[Point]]
    tags: Mapping[str, str]
    origin: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    failure: str = ""
    number: int = 0
    run: Entry | None = None


class Store(Protocol):
    """A place that keeps runs. What it has been sent is not sent again."""

    def send(self, entry: Entry, key: str) -> None:
        """Send what the store misses of an entry, its end last: one that has ended is complete.

        Args:
            entry: what the store should have.
            key: the run's.
        """

    def send_files(self, folder: Path, key: str) -> None:
        """Send the files of a run folder that the store does not have as they are now."""


def mirror(folder: Path, store: Store) -> None:
    """Send what a store misses of a run folder: settings, metrics, training curves, files.

    Files come last: those that cannot be sent hold up nothing else.

    Args:
        folder: the run folder; no other process may be sending it.
        store: where to.

    Raises:
        DataError: if a file of the run folder is damaged.
        Exception: of the store, if it does not answer; what it misses is sent by the next call.
    """
    store.send_files(folder, mirror_metrics(folder, store).key)


def mirror_metrics(folder: Path, store: Store) -> RunRecord:
    """Send what a store misses of a run folder, without files: while the run continues."""
    record = RunRecord.load(folder)
    run = run_entry(folder, record)
    for number, a_round in record.rounds.items():
        store.send(round_entry(folder, run, number, a_round), record.key)
    store.send(run, record.key)
    return record


def run_entry(folder: Path, record: RunRecord) -> Entry:
    """What a store should have of a run as a whole."""
    return Entry(
        span=record,
        points=lambda: round_points(folder, record),
        tags=record.tags,
        origin=record.origin,
        settings=record.settings,
        failure=record.failure,
    )


def round_entry(folder: Path, run: Entry, number: int, a_round: RoundRecord) -> Entry:
    """What a store should have of a round."""
    return Entry(
        span=a_round,
        points=lambda: curve_points(folder, number),
        tags={"round": str(number), "labelled": str(a_round.labelled)},
        number=number,
        run=run,
    )


def files_to_send(
    folder: Path, skip: Sequence[str], report: Callable[[Path], None]
) -> Iterator[Path]:
    """The files of a run folder that a store gets, each by its path in the folder.

    Args:
        folder: the run folder.
        skip: patterns of the names of files and folders that are not sent.
        report: called with each link that leads out of the folder, which is not sent.
    """
    skipped = (*skip, TRACKING_FILE, ".*")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        path = file.relative_to(folder)
        if any(fnmatch(part, pattern) for part in path.parts for pattern in skipped):
            continue
        if is_within(file, folder):
            yield path
        else:
            report(file)
