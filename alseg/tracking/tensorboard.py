"""``tracking=tensorboard``: event files that TensorBoard shows."""

from __future__ import annotations

import shlex
from pathlib import Path

from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from alseg.tracking.loggers import LoggerTracker, check_installed


class TensorBoardTracker(LoggerTracker):
    """Records a run in event files: by labelled count in the run folder, by step in each round's.

    Raises:
        ConfigError: if tensorboard is not installed.
    """

    def __init__(self) -> None:
        check_installed("tensorboard", "tensorboard")
        super().__init__("tensorboard")

    def new_logger(self, folder: Path, round_number: int | None) -> Logger:
        """A logger that adds an event file to a folder."""
        return _EventFiles(folder, name="", version="", default_hp_metric=False)

    def views(self) -> dict[str, str]:
        """TensorBoard, of all runs beside this one."""
        runs = self.folder.parent.parent
        return {"TensorBoard": f"tensorboard --logdir {shlex.quote(str(runs))}"}


class _EventFiles(TensorBoardLogger):
    @rank_zero_only
    def save(self) -> None:
        """Write what is waiting; not the hparams.yaml that Lightning adds: settings are logged."""
        self.experiment.flush()
