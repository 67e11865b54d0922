"""``tracking=csv``: metrics in CSV files, a row a step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from alseg.run.folder import METRICS_FILE
from alseg.system.files import write_atomically
from alseg.tracking.loggers import LoggerTracker

FILE_NAME = METRICS_FILE


class CSVTracker(LoggerTracker):
    """Records a run in CSV files: by labelled count in the run folder, by step in each round's."""

    def __init__(self) -> None:
        super().__init__("csv")

    def new_logger(self, folder: Path, round_number: int | None) -> Logger:
        """A logger that writes ``metrics.csv``."""
        return StepTable(folder / FILE_NAME)

    def views(self) -> dict[str, str]:
        """None: a CSV file is opened with what a person likes."""
        return {}


class StepTable(Logger):
    """A CSV file with a row a step and a column a metric.

    Not Lightning's CSVLogger, which deletes the rows of an earlier process.

    Args:
        path: of the file; rows that it holds stay.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._table = pd.DataFrame()
        if path.is_file():
            self._table = pd.read_csv(path, index_col="step")

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
        for name, value in metrics.items():
            self._table.loc[step or 0, name] = float(value)

    @rank_zero_only
    def save(self) -> None:
        """Write the file."""
        if not self._table.empty:
            write_atomically(self.path, self._table.to_csv(index_label="step"))
