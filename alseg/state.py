"""The state of a run on disk: the only source for resuming it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alseg.distributed import rank
from alseg.errors import ConfigError, DataError
from alseg.pool import Pool

STATE_FILE = "state.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class RunState:
    """Everything a run has to remember between two rounds.

    Attributes:
        pool: the labelled and the unlabelled cases *after* the last finished round.
        finished_rounds: number of finished rounds.
        history: one row a finished round: round, labelled count, validation and test Dice.
        queries: one row an acquired case: round (0 for the initial pool), case id, score, rank.
        timings: one row a finished round: seconds of training, scoring, preprocessing.
        config_hash: hash of the resolved configuration, so that another one is noticed.
        tracking_run_id: the run's id in the tracking store, if it is tracked.
    """

    pool: Pool
    config_hash: str
    finished_rounds: int = 0
    history: tuple[dict[str, Any], ...] = field(default=())
    queries: tuple[dict[str, Any], ...] = field(default=())
    timings: tuple[dict[str, Any], ...] = field(default=())
    tracking_run_id: str | None = None

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

    def save(self, folder: Path) -> None:
        """Write ``state.json`` so that a reader sees the old or the new state, never a part."""
        write_atomically(
            folder / STATE_FILE, json.dumps({"version": FORMAT_VERSION} | asdict(self), indent=1)
        )

    @classmethod
    def load(cls, folder: Path) -> RunState:
        """Read ``state.json`` from a run folder.

        Raises:
            DataError: if the file is missing, is not valid, or was written by another format.
        """
        path = folder / STATE_FILE
        if not path.is_file():
            raise DataError(f"there is nothing to resume in {folder}: it has no {STATE_FILE}")
        try:
            content = json.loads(path.read_text())
            version = content.pop("version")
            if version != FORMAT_VERSION:
                raise DataError(
                    f"{path} has format version {version}, this alseg reads {FORMAT_VERSION}"
                )
            pool = content.pop("pool")
            rows: dict[str, Any] = {
                name: tuple(content.pop(name)) for name in ("history", "queries", "timings")
            }
            cases = {name: tuple(case_ids) for name, case_ids in pool.items()}
            return cls(pool=Pool(**cases), **rows, **content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a valid run state: {error}") from error


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a run folder; the lock goes with the process, however it ends.

    Raises:
        ConfigError: if another process holds it.
    """
    if rank() > 0:
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigError(f"{folder} is in use by another process") from None
    try:
        yield
    finally:
        lock.release()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file through a temporary sibling: write, fsync, rename.

    Under torchrun only the first process writes.
    """
    if rank() > 0:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
