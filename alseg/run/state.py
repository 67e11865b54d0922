"""The state of a run on disk: the only source for resuming it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import UnionType
from typing import Any

from alseg.core.errors import DataError
from alseg.core.pool import Pool
from alseg.core.units import Unit, as_region
from alseg.run.folder import STATE_FILE
from alseg.run.measure import Measure, measure_of
from alseg.system.files import newest_intact, previous, read_json, write_atomically, write_json

log = logging.getLogger(__name__)


FORMAT_VERSION = 1
DICE = "_dice"  # in the name of a column that holds one
# What each row of a table has at least; further columns of Dice are numbers as well.
COLUMNS: dict[str, dict[str, type | UnionType]] = {
    "history": {"round": int, "labelled": int, "val_dice": float | int},
    "queries": {"round": int, "case_id": str},
    "timings": {"round": int},
}


@dataclass(frozen=True)
class RunState:
    """Everything a run has to remember between two rounds.

    Attributes:
        pool: the labelled and the unlabelled cases *after* the last finished round.
        finished_rounds: number of finished rounds.
        history: one row a finished round: round, labelled count, Dice of the validation part and of
            the test part, if there is one.
        queries: one row an acquired unit: round (0 for the initial pool), case id, score, rank.
        timings: one row a finished round: seconds of training, scoring, preprocessing.
        config_hash: hash of the resolved configuration, so that another one is noticed.
        hardware: what the last process computed on; on another, results differ in their last bits.
    """

    pool: Pool
    config_hash: str
    finished_rounds: int = 0
    history: tuple[dict[str, Any], ...] = field(default=())
    queries: tuple[dict[str, Any], ...] = field(default=())
    timings: tuple[dict[str, Any], ...] = field(default=())
    hardware: str = ""

    def __post_init__(self) -> None:
        if self.finished_rounds != len(self.history):
            raise ValueError(
                f"finished_rounds is {self.finished_rounds!r}, with {len(self.history)} rows of "
                "history"
            )
        for name in ("config_hash", "hardware"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"{name} is {value!r}, which is not text")
        if not all(isinstance(i, str) for i in self.pool.labelled + self.pool.unlabelled):
            raise ValueError("a case id in the pool is not text")

    @property
    def measure(self) -> Measure:
        """By which Dice the run is judged; there is a finished round."""
        return measure_of(self.history[0])

    @property
    def cost(self) -> float:
        """Of the labelled units, in units of the run's ``cost``."""
        return math.fsum(row["cost"] for row in self.queries)

    @property
    def has_asked(self) -> bool:
        """Whether a query followed the last finished round; before the first, the initial one."""
        return bool(self.queries) and self.queries[-1]["round"] == self.finished_rounds

    def learning_curve(self, column: str) -> tuple[list[float], list[float]]:
        """The labelled counts of the finished rounds, and what a column of the history holds."""
        return [row["labelled"] for row in self.history], [row[column] for row in self.history]

    def after_round(
        self,
        pool: Pool,
        metrics: dict[str, Any],
        queries: Sequence[dict[str, Any]],
        timings: dict[str, Any],
    ) -> RunState:
        """The state after one more round, with the pool that the round's acquisition left."""
        return replace(
            self,
            pool=pool,
            finished_rounds=self.finished_rounds + 1,
            history=(*self.history, metrics),
            queries=(*self.queries, *queries),
            timings=(*self.timings, timings),
        )

    def before_last_round(self) -> RunState:
        """The state before the last finished round, which no query has followed.

        Raises:
            ValueError: if there is no such round.
        """
        if not self.history or self.has_asked:
            raise ValueError("no finished round is without a query")
        return replace(
            self,
            finished_rounds=self.finished_rounds - 1,
            history=self.history[:-1],
            timings=self.timings[:-1],
        )

    def save(self, folder: Path) -> None:
        """Write ``state.json`` so that a reader sees the old or the new state, never a part.

        The old one is kept beside it, in case the new one is found damaged.

        Raises:
            StorageError: if it cannot be written; the old state is as it was.
        """
        path = folder / STATE_FILE
        if path.is_file() and is_intact(path):  # a damaged file must not push out a good one
            write_atomically(previous(path), path.read_text(encoding="utf-8"))
        content = {"version": FORMAT_VERSION} | asdict(self)
        if not self.pool.regions:
            del content["pool"]["regions"]  # a run of whole volumes knows none
        write_json(path, content)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder holds the state of a run."""
        path = folder / STATE_FILE
        return path.is_file() or previous(path).is_file()

    @classmethod
    def load(cls, folder: Path) -> RunState:
        """Read ``state.json`` from a run folder; if it is damaged, the state before it.

        Raises:
            DataError: if there is none, both are damaged, or it was written by another format.
        """
        path = folder / STATE_FILE
        if not cls.is_in(folder):
            raise DataError(f"there is nothing to resume in {folder}: it has no {STATE_FILE}")
        damages: list[str] = []
        found = newest_intact(path, cls._read, damages.append)
        if found is None:
            raise DataError("; ".join(damages))
        source, state = found
        if source != path:
            log.warning(
                f"{damages[0] if damages else f'{path} is missing'}; continuing from {source}, the "
                f"state after round {state.finished_rounds}"
            )
        return state

    @classmethod
    def _read(cls, path: Path) -> RunState:
        content = read_json(path, by_hand=False)
        try:
            version = content.pop("version")
            if version != FORMAT_VERSION:
                raise DataError(
                    f"{path} has format version {version}, this alseg reads {FORMAT_VERSION}"
                )
            pool = content.pop("pool")
            rows: dict[str, Any] = {
                name: tuple(content.pop(name)) for name in ("history", "queries", "timings")
            }
            for name, columns in COLUMNS.items():
                check_rows(name, rows[name], columns)
            regions = tuple(
                Unit(unit["case_id"], as_region(unit["region"])) for unit in pool.pop("regions", [])
            )
            cases = {name: tuple(case_ids) for name, case_ids in pool.items()}
            return cls(pool=Pool(**cases, regions=regions), **rows, **content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a valid run state: {error}") from error


def check_rows(name: str, rows: Sequence[Any], columns: Mapping[str, type | UnionType]) -> None:
    """Check that the rows of a table are alike and have these columns.

    Raises:
        ValueError: if the rows have different columns.
        TypeError: naming the first column that is not as it should be.
    """
    for row in rows:
        if not isinstance(row, dict):
            raise TypeError(f"a row of {name} is {row!r}")
        if set(row) != set(rows[0]):
            raise ValueError(f"the rows of {name} have different columns")
        for column, kind in columns.items():
            if not isinstance(row.get(column), kind):
                raise TypeError(f"{column} in {name} is {row.get(column)!r}")
        for column, value in row.items():
            kind = float | int if DICE in column else str | int | float | None
            if column not in columns and not isinstance(value, kind):
                raise TypeError(f"{column} in {name} is {value!r}")


def is_intact(path: Path) -> bool:
    """Whether a JSON file has its checksum and agrees with it."""
    try:
        read_json(path, by_hand=False)
    except DataError:
        return False
    return True
