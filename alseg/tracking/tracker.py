"""What records a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pytorch_lightning.loggers import Logger

from alseg.core.errors import check_part
from alseg.run.folder import TRAINING_CURVES_FILE
from alseg.tracking.curves import TrainingCurves
from alseg.tracking.record import FinishedRound, RunRecord, finished_rounds


@runtime_checkable
class Tracker(Protocol):
    """Records one run: its settings, its metrics by labelled count, its training curves.

    The run folder is ahead of it: what a tracker gets is in the folder's files already.
    """

    def open(self, folder: Path, settings: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Start to record the run in ``folder``, or continue after an earlier process.

        Args:
            folder: the run folder.
            settings: the run's, flat.
            tags: what runs are grouped by.
        """

    def round_logger(self, round_number: int, n_labelled: int, folder: Path) -> Logger | None:
        """A Lightning logger for the training curves of the round with this folder.

        None for a tracker that reads them from the run folder.
        """

    def curves_saved(self) -> None:
        """The training curves in the run folder have got new rows."""

    def log_rounds(self, rounds: Sequence[FinishedRound]) -> None:
        """Record the finished rounds, all since the first one, that are not recorded yet."""

    def close(self, status: str, reason: str = "") -> None:
        """End the run, and a round that is not finished.

        Args:
            status: FINISHED, FAILED, KILLED or, if it waits for labels, SCHEDULED.
            reason: why it failed.
        """

    def views(self) -> dict[str, str]:
        """The commands that show what was recorded, by what they show."""


class Trackers:
    """Records a run in its folder, and from there in several places at once, or nowhere.

    Args:
        by_name: the trackers, as the group ``tracking`` names them.

    Raises:
        ConfigError: if one of them is not a tracker.
    """

    def __init__(self, by_name: Mapping[str, Tracker]) -> None:
        for name, tracker in by_name.items():
            check_part(f"tracking.{name}", tracker, Tracker)
        self._trackers = list(by_name.values())
        self._open: list[Tracker] = []
        self._record: RunRecord | None = None
        self._curves: TrainingCurves | None = None

    def open(self, folder: Path, settings: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Start to record the run, or continue; see ``Tracker.open``.

        Raises:
            DataError: if what an earlier process has recorded is damaged.
        """
        self._folder = folder
        self._keep(RunRecord.opened(folder, settings, tags))
        for tracker in self._trackers:
            tracker.open(folder, settings, tags)
            self._open.append(tracker)

    def round_loggers(self, round_number: int, n_labelled: int, folder: Path) -> list[Logger]:
        """The loggers of a round's training curves."""
        self._keep(self.record.with_round(round_number, n_labelled))
        self._curves = TrainingCurves(folder / TRAINING_CURVES_FILE, self._curves_saved)
        loggers = [t.round_logger(round_number, n_labelled, folder) for t in self._open]
        return [self._curves, *(logger for logger in loggers if logger is not None)]

    def log_rounds(self) -> None:
        """Record the rounds that ``metrics.csv`` has."""
        self._end_curves()
        rounds = finished_rounds(self._folder)
        self._keep(self.record.with_finished({r.number: r.labelled for r in rounds}))
        for tracker in self._open:
            tracker.log_rounds(rounds)

    def close(self, status: str, reason: str = "") -> None:
        """End the run wherever it was opened, even if one of the places fails."""
        if self._record is None:  # that of an earlier process is damaged
            return
        with ExitStack() as stack:
            for tracker in reversed(self._open):
                stack.callback(tracker.close, status, reason)
            self._end_curves()
            self._keep(self.record.closed(status, reason))

    def views(self) -> dict[str, str]:
        """The commands that show what was recorded, by what they show."""
        return {name: command for t in self._trackers for name, command in t.views().items()}

    @property
    def record(self) -> RunRecord:
        """What ``tracking.json`` holds of the open run."""
        if self._record is None:
            raise RuntimeError("the run has not been opened")
        return self._record

    def _keep(self, record: RunRecord) -> None:
        self._record = record
        record.save(self._folder)

    def _curves_saved(self) -> None:
        for tracker in self._open:
            tracker.curves_saved()

    def _end_curves(self) -> None:
        if self._curves is not None:
            self._curves.save()
            self._curves = None
