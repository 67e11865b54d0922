"""What the files of a run folder say about its run: all that tracking stores get.

The metrics are in ``metrics.csv`` and in the training curves of each round. What no other file says
is in ``tracking.json``: tags, settings, and when run and rounds started and ended.
"""

from __future__ import annotations

import csv
import getpass
import math
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from alseg.core.area_under_curve import area_under_budget_curve
from alseg.core.errors import DataError
from alseg.core.metric_names import TITLES, UNDEFINED_HD95
from alseg.run.folder import METRICS_FILE, TRACKING_FILE, TRAINING_CURVES_FILE, round_folder
from alseg.run.measure import measure_of
from alseg.run.provenance import train_command
from alseg.system.files import read_json, write_json
from alseg.system.secrets import without_secrets

RUNNING, FINISHED = "RUNNING", "FINISHED"
STEP, TIME = "step", "time_ms"  # columns of the training curves, beside those of the metrics

S = TypeVar("S", bound="Span")


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


@dataclass(frozen=True)
class Span:
    """When a run or a round started and ended.

    Attributes:
        started: in milliseconds since 1970.
        status: RUNNING, FINISHED, FAILED, KILLED or, while it waits for labels, SCHEDULED.
        ended: in milliseconds since 1970; None while it continues.
    """

    started: int
    status: str = RUNNING
    ended: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come, unless the run is resumed."""
        return self.ended is not None

    def again(self: S) -> S:
        """It continues after an earlier process has ended."""
        return replace(self, status=RUNNING, ended=None)

    def end(self: S, status: str) -> S:
        """It ends now."""
        return replace(self, status=status, ended=now_ms())


@dataclass(frozen=True)
class RoundRecord(Span):
    """When a round started and ended.

    Attributes:
        labelled: the number of labelled volumes that it trains with.
    """

    labelled: int = 0


@dataclass(frozen=True, kw_only=True)
class RunRecord(Span):
    """The content of ``tracking.json``.

    Attributes:
        key: by which stores know the run: another one than that of any other run.
        tags: what runs are grouped by.
        settings: the run's, flat, as it was started with them.
        origin: folder, command, program and user of the process that started the run.
        failure: why the run failed; else empty.
        rounds: those that have started, by their numbers from 1 on.
    """

    key: str
    tags: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    failure: str = ""
    rounds: dict[int, RoundRecord] = field(default_factory=dict)

    @classmethod
    def opened(
        cls, folder: Path, settings: Mapping[str, Any], tags: Mapping[str, str]
    ) -> RunRecord:
        """The record of a run that starts, or continues after an earlier process.

        What an earlier process has noted stays: settings are recorded as the run started with them.

        Raises:
            DataError: if the record of an earlier process is damaged.
        """
        if (folder / TRACKING_FILE).is_file():
            record = cls.load(folder).again()
        else:
            key = uuid.uuid4().hex
            record = cls(started=now_ms(), key=key, tags=dict(tags), origin=origin(folder))
        texts = {name: str(value) for name, value in settings.items()}
        return replace(record, settings={**texts, **record.settings}, failure="")

    @classmethod
    def load(cls, folder: Path) -> RunRecord:
        """Read it from a run folder.

        Raises:
            DataError: if it is missing or damaged.
        """
        path = folder / TRACKING_FILE
        try:
            return TypeAdapter(cls).validate_python(read_json(path))
        except ValidationError as error:
            wrong = error.errors()[0]
            raise DataError(
                f"{path} does not say how the run is tracked: {'.'.join(map(str, wrong['loc']))}: "
                f"{wrong['msg']}; delete the file, and tracking stores get the run anew"
            ) from error

    def save(self, folder: Path) -> None:
        """Write it to a run folder, atomically."""
        write_json(folder / TRACKING_FILE, TypeAdapter(RunRecord).dump_python(self, mode="json"))

    def with_round(self, number: int, labelled: int) -> RunRecord:
        """The record with a round that starts or continues; one that is finished stays so."""
        begun = self.rounds.get(number, RoundRecord(now_ms()))
        if begun.status != FINISHED:
            begun = replace(begun.again(), labelled=labelled)
        return replace(self, rounds={**self.rounds, number: begun})

    def with_finished(self, rounds: Mapping[int, int]) -> RunRecord:
        """The record with rounds that are finished; those that were so before keep their times.

        Args:
            rounds: the labelled count of each round, by the round's number.
        """
        records = dict(self.rounds)
        for number, labelled in rounds.items():
            known = records.get(number, RoundRecord(now_ms(), labelled=labelled))
            records[number] = known if known.status == FINISHED else known.end(FINISHED)
        return replace(self, rounds=records)

    def closed(self, status: str, reason: str = "") -> RunRecord:
        """The record of a run that ends, with the rounds that have not ended before."""
        rounds = {n: r if r.has_ended else r.end(status) for n, r in self.rounds.items()}
        return replace(self.end(status), rounds=rounds, failure=without_secrets(reason))


def origin(folder: Path) -> dict[str, str]:
    """Where a run was started, by whom and how."""
    return {
        "folder": str(folder.absolute()),
        "command": train_command(),
        "program": Path(sys.argv[0]).name,
        "user": getpass.getuser(),
    }


def metric_name(column: str) -> str:
    """What a column of metrics.csv is called in tracking stores, which group by the first part.

    ``test_dice_liver`` is ``dice/test/liver``, ``test_hd95`` is ``hd95/test``, ``training_seconds``
    is ``time/training``; the sizes and costs of the pool come under ``pool/``.
    """
    if column == "area":
        return column
    if column.endswith("_seconds"):
        return f"time/{column.removesuffix('_seconds')}"
    for part, metric in product(("test", "val"), (*TITLES, UNDEFINED_HD95)):
        if column == f"{part}_{metric}":
            return f"{metric}/{part}"
        if column.startswith(f"{part}_{metric}_"):
            return f"{metric}/{part}/{column.removeprefix(f'{part}_{metric}_')}"
    return f"pool/{column}"


class FinishedRound(NamedTuple):
    """What ``metrics.csv`` says of a round: its metrics are named by ``metric_name``."""

    number: int
    labelled: int
    metrics: dict[str, float]


def finished_rounds(folder: Path) -> list[FinishedRound]:
    """The rounds in ``metrics.csv``, each with the area under the budget curve up to it.

    Raises:
        DataError: if the file is damaged.
    """
    path = folder / METRICS_FILE
    rows = numbers_of(path, empty=math.nan)  # the Dice of a class that no label holds
    try:
        labelled = [row["labelled"] for row in rows]
        dice = [row[measure_of(rows[0]).column] for row in rows]
        return [
            FinishedRound(
                int(row["round"]),
                int(row["labelled"]),
                {metric_name(name): value for name, value in row.items() if name != "round"}
                | {"area": area_under_budget_curve(labelled[:index], dice[:index])},
            )
            for index, row in enumerate(rows, start=1)
        ]
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


class Point(NamedTuple):
    """A value of a metric; its time is in milliseconds since 1970."""

    name: str
    value: float
    time_ms: int
    step: int


def round_points(folder: Path, record: RunRecord) -> list[Point]:
    """The metrics of the finished rounds, by labelled count.

    Rounds that label nothing new share a step, and differ in their times.
    """
    return [
        Point(name, value, ended, a_round.labelled)
        for a_round in finished_rounds(folder)
        if a_round.number in record.rounds
        and (ended := record.rounds[a_round.number].ended) is not None
        for name, value in a_round.metrics.items()
    ]


def curve_points(folder: Path, number: int) -> list[Point]:
    """The training curves of a round, by training step."""
    return [
        Point(name, value, int(row[TIME]), int(row[STEP]))
        for row in step_rows(round_folder(folder, number) / TRAINING_CURVES_FILE)
        for name, value in row.items()
        if name not in (STEP, TIME)
    ]


def step_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a table by step; none if there is no file.

    Raises:
        DataError: if the file is damaged.
    """
    rows = numbers_of(path)
    try:
        return [row | {STEP: int(row[STEP]), TIME: int(row[TIME])} for row in rows]
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} is damaged: no whole number in {STEP} or {TIME}") from error


def numbers_of(path: Path, empty: float | None = None) -> list[dict[str, float]]:
    """The rows of a CSV file of numbers; none if there is no file.

    Args:
        path: of the file.
        empty: what an empty cell means; None for nothing, so that the row lacks it.

    Raises:
        DataError: if the file is damaged.
    """
    if not path.is_file():
        return []

    def cells(row: dict[str, Any]) -> dict[str, float]:
        found = {name: empty if cell == "" else float(cell) for name, cell in row.items()}
        return {name: value for name, value in found.items() if value is not None}

    with path.open(encoding="utf-8", newline="") as file:
        try:
            return [cells(row) for row in csv.DictReader(file, strict=True)]
        except (ValueError, TypeError, csv.Error) as error:
            raise DataError(f"{path} is damaged: {error}") from error
