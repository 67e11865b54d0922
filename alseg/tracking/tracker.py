"""What records a run, and how metrics are called there."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pytorch_lightning.loggers import Logger

from alseg.core.errors import check_part


def metric_name(column: str) -> str:
    """What a column of metrics.csv is called in tracking stores, which group by the first part.

    ``test_dice_liver`` is ``dice/test/liver``, ``training_seconds`` is ``time/training``; the sizes
    and costs of the pool come under ``pool/``.
    """
    if column == "area":
        return column
    if column.endswith("_seconds"):
        return f"time/{column.removesuffix('_seconds')}"
    for part in ("test", "val"):
        if column == f"{part}_dice":
            return f"dice/{part}"
        if column.startswith(f"{part}_dice_"):
            return f"dice/{part}/{column.removeprefix(f'{part}_dice_')}"
    return f"pool/{column}"


@runtime_checkable
class Tracker(Protocol):
    """Records one run: its settings, its metrics by labelled count, its training curves."""

    def open(
        self,
        folder: Path,
        run_id: str | None,
        settings: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> str | None:
        """Start to record the run in ``folder``, or go on after an earlier process.

        Args:
            folder: the run folder.
            run_id: what an earlier process has got from ``open``.
            settings: the run's, flat.
            tags: what runs are grouped by.

        Returns:
            The id that a tracking server has given the run; None where the folder is enough to
            find it again.
        """

    def round_logger(self, round_number: int, n_labelled: int, folder: Path) -> Logger:
        """A Lightning logger for the training curves of the round with this folder."""

    def log_round(self, metrics: Mapping[str, float], n_labelled: int) -> None:
        """Record the metrics of a finished round, named by ``metric_name``, at step ``n_labelled``.

        Called again, after a resumption, it does nothing.
        """

    def close(self, status: str, reason: str = "") -> None:
        """End the run, and a round that is not finished: FINISHED, FAILED (and why) or KILLED."""

    def views(self) -> dict[str, str]:
        """The commands that show what was recorded, by what they show."""


class Trackers:
    """Records a run in several places at once, or nowhere.

    Args:
        by_name: the trackers, as the group ``tracking`` names them.

    Raises:
        ConfigError: if one of them is no tracker.
    """

    def __init__(self, by_name: Mapping[str, Tracker]) -> None:
        for name, tracker in by_name.items():
            check_part(f"tracking.{name}", tracker, Tracker)
        self._trackers = list(by_name.values())
        self._open: list[Tracker] = []

    def open(
        self,
        folder: Path,
        run_id: str | None,
        settings: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> str | None:
        """Start to record the run, or go on; see ``Tracker.open``.

        Returns:
            The run's id, which stays as it is where nobody gives another one.
        """
        for tracker in self._trackers:
            run_id = tracker.open(folder, run_id, settings, tags) or run_id
            self._open.append(tracker)
        return run_id

    def round_loggers(self, round_number: int, n_labelled: int, folder: Path) -> list[Logger]:
        """The loggers of a round's training curves."""
        return [t.round_logger(round_number, n_labelled, folder) for t in self._open]

    def log_round(self, metrics: Mapping[str, float], n_labelled: int) -> None:
        """Record the metrics of a finished round; see ``Tracker.log_round``."""
        for tracker in self._open:
            tracker.log_round(metrics, n_labelled)

    def close(self, status: str, reason: str = "") -> None:
        """End the run wherever it was opened, even if one of the places fails."""
        with ExitStack() as stack:
            for tracker in reversed(self._open):
                stack.callback(tracker.close, status, reason)

    def views(self) -> dict[str, str]:
        """The commands that show what was recorded, by what they show."""
        return {name: command for t in self._trackers for name, command in t.views().items()}
