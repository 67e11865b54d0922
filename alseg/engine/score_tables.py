"""The tables of an archive's scores: one a shard, which rows are appended to, and the top of all.

A row is one write, so that a process that is killed leaves whole rows, or one that is cut off: that
one is left out, and its scan is scored again. Reading takes one row at a time.
"""

from __future__ import annotations

import csv
import heapq
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alseg.core.errors import DataError
from alseg.system.files import name_file_in_errors, replacing, write_atomically

COLUMNS = ("case", "status", "score", "n_passes", "seconds", "message", "made_of")
DONE, REFUSED = "done", "refused"
TABLES, TOP_FILE = "scores_*_of_*.csv", "top.csv"
TOP_COLUMNS = ("rank", "case", "score")
Row = Mapping[str, str]


class ScoreTable:
    """The scores of one shard; only one process writes it.

    Columns: ``case``; ``status`` (done or refused); ``score``; ``n_passes`` that it was taken from;
    ``seconds``; ``message``, why it was refused or what its header leaves open; ``made_of``, a
    hash of all that the score depends on.

    Args:
        folder: of all tables.
        shard: which one, from 0.
        shards: how many there are.
    """

    def __init__(self, folder: Path, shard: int, shards: int) -> None:
        self.path = folder / f"scores_{shard:04d}_of_{shards:04d}.csv"

    def keep(self, is_current: Callable[[Row], bool]) -> set[str]:
        """Write the table again with the rows that are current, each case once.

        Returns:
            The cases in it.
        """
        kept: set[str] = set()
        with replacing(self.path) as file:
            file.write(as_line(COLUMNS))
            for row in rows_of(self.path) if self.path.is_file() else ():
                if row["case"] not in kept and is_current(row):
                    kept.add(row["case"])
                    file.write(as_line(row.values()))
        return kept

    def append(self, case_id: str, status: str, **values: Any) -> None:
        """Add the row of a case.

        Raises:
            StorageError: if it cannot be written.
        """
        row = dict.fromkeys(COLUMNS, "") | {"case": case_id, "status": status} | values
        with name_file_in_errors(self.path), self.path.open("ab", buffering=0) as file:
            file.write(as_line(row.values()))


def as_line(values: Iterable[Any]) -> bytes:
    """One line of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode("utf-8")


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a table, one after another, without those that are cut off or damaged.

    Raises:
        DataError: if it is no table of scores.
    """
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise DataError(f"{path} is not a table of scores; give another output")
        for row in reader:
            is_whole = None not in row and None not in row.values() and row["made_of"]
            if is_whole and (row["status"] != DONE or _is_number(row["score"])):
                yield row


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def top_of(tables: Iterable[Path], n: int) -> tuple[list[tuple[int, str, float]], int]:
    """The n cases of highest score: rank from 1, case and score; and how many cases have one.

    Equal scores go by the case's id. Memory is that of n rows.
    """
    n_scored = 0

    def scored() -> Iterator[tuple[float, str]]:
        nonlocal n_scored
        for path in tables:
            for row in rows_of(path):
                if row["status"] == DONE and math.isfinite(score := float(row["score"])):
                    n_scored += 1
                    yield -score, row["case"]

    best = heapq.nsmallest(n, scored())
    return [(rank, case, -score) for rank, (score, case) in enumerate(best, 1)], n_scored


def write_top(path: Path, top: Iterable[tuple[int, str, float]]) -> None:
    """Write the list of the highest scores."""
    lines = [as_line(TOP_COLUMNS), *map(as_line, top)]
    write_atomically(path, b"".join(lines).decode("utf-8"))
