"""``tracking=csv``: metrics in CSV files, a row a step."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning.loggers import Logger

from alseg.run.folder import METRICS_FILE
from alseg.tracking.curves import StepTable
from alseg.tracking.loggers import LoggerTracker


class CSVTracker(LoggerTracker):
    """Records a run in CSV files: by labelled count in the run folder, by step in each round's."""

    def __init__(self) -> None:
        super().__init__("csv")

    def new_logger(self, folder: Path, round_number: int | None) -> Logger:
        """A logger that writes ``metrics.csv``."""
        return StepTable(folder / METRICS_FILE)

    def views(self) -> dict[str, str]:
        """None: a CSV file is opened with what a person likes."""
        return {}
