"""Training curves in the run folder: a CSV file a round, a row a step."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from alseg.system.files import write_atomically
from alseg.tracking.record import STEP, TIME, now_ms, step_rows

FLUSH_SECONDS = 10.0


def without_repeats(
    metrics: Mapping[str, float], step: int, last_steps: dict[str, int]
) -> dict[str, float]:
    """The metrics that have not been logged at this step or a later one.

    A training that was killed repeats the steps since its last checkpoint.

    Args:
        metrics: by name.
        step: of these metrics.
        last_steps: of each metric that was logged; brought up to date.
    """
    new = {name: value for name, value in metrics.items() if step > last_steps.get(name, -1)}
    last_steps |= dict.fromkeys(new, step)
    return new


class StepTable(Logger):
    """A CSV file with a row a step: the step, when it was logged, and a column a metric.

    Not Lightning's CSVLogger, which deletes the rows of an earlier process. The file is written
    atomically. A metric that comes again at a step has a row of its own.

    Args:
        path: of the file; rows that it holds stay.

    Raises:
        DataError: if the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows: list[dict[str, float]] = step_rows(path)
        self._is_saved = True

    @property
    def name(self) -> str:
        """The file's."""
        return self.path.name

    @property
    def version(self) -> str:
        """None: there is one file only."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The settings stand in the run folder's config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep metrics until ``save``."""
        if not metrics:
            return
        last = self._rows[-1] if self._rows else {}
        if last.get(STEP) != (step or 0) or not set(metrics).isdisjoint(last):
            last = {STEP: step or 0, TIME: now_ms()}
            self._rows.append(last)
        last |= {name: float(value) for name, value in metrics.items()}
        self._is_saved = False

    @rank_zero_only
    def save(self) -> None:
        """Write the file, if there is anything new."""
        if self._is_saved:
            return
        columns = [STEP, TIME, *sorted({name for row in self._rows for name in row} - {STEP, TIME})]
        text = io.StringIO()
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(self._rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text.getvalue())
        self._is_saved = True


class TrainingCurves(StepTable):
    """The training curves of a round, on the disk every few seconds, and before each checkpoint.

    Steps that an earlier process has logged are left out.

    Args:
        path: of the file.
        on_save: called when the file has been written.
    """

    def __init__(self, path: Path, on_save: Callable[[], None]) -> None:
        super().__init__(path)
        self._on_save = on_save
        self._last_steps: dict[str, int] = {}
        for row in self._rows:
            self._last_steps |= dict.fromkeys(row, int(row[STEP]))
        self._saved_at = time.monotonic()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep what is new; see that it reaches the disk now and then."""
        super().log_metrics(without_repeats(metrics, step or 0, self._last_steps), step)
        if time.monotonic() - self._saved_at > FLUSH_SECONDS:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the file and say so."""
        super().save()
        self._saved_at = time.monotonic()
        self._on_save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the file: training, testing and scoring each say that they are done."""
        self.save()
