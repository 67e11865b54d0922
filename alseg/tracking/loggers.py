"""Records a run with loggers of Lightning: one for the run, one for the curves of each round."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from alseg.core.errors import ConfigError
from alseg.system.files import read_json, write_json
from alseg.tracking.curves import FLUSH_SECONDS, without_repeats
from alseg.tracking.record import FinishedRound

RECORD_FILE = "recorded.json"


def check_installed(module: str, extra: str) -> None:
    """Check that an optional library is there.

    Raises:
        ConfigError: with the command that installs it.
    """
    if find_spec(module) is None:
        raise ConfigError(
            f"tracking={extra} needs the package {module}: pip install 'alseg[{extra}]'"
        )


class LoggerTracker(ABC):
    """A tracker made of Lightning loggers, which write into the run's folder.

    A kind of its own says which logger writes into a folder, and has a YAML in conf/tracking.

    Args:
        name: of the folders that the loggers write into: one in the run folder, with the metrics by
            labelled count, and one in each round's folder, with the training curves.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._round: RepeatsLeftOut | None = None

    @abstractmethod
    def new_logger(self, folder: Path, round_number: int | None) -> Logger:
        """A logger that adds to what an earlier process has left in a folder.

        Args:
            folder: made if it is not there.
            round_number: whose curves are recorded; None for the run as a whole.
        """

    @abstractmethod
    def views(self) -> dict[str, str]:
        """The commands that show what was recorded, by what they show."""

    def open(self, folder: Path, settings: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Start to record the run, or continue."""
        self.folder = folder / self.name
        is_new = not (self.folder / RECORD_FILE).is_file()
        self._run = RepeatsLeftOut(self.new_logger(self.folder, None), self.folder)
        if is_new:
            self._run.log_hyperparams({**settings, **{f"tag.{k}": v for k, v in tags.items()}})
            self._run.save()

    def round_logger(self, round_number: int, n_labelled: int, folder: Path) -> Logger:
        """A logger that writes into the round's folder."""
        own = folder / self.name
        self._round = RepeatsLeftOut(self.new_logger(own, round_number), own)
        return self._round

    def curves_saved(self) -> None:  # noqa: B027 - what most trackers do then: nothing
        """The round's logger gets the training curves itself."""

    def log_rounds(self, rounds: Sequence[FinishedRound]) -> None:
        """Record the metrics of the rounds by labelled count, unless they are recorded."""
        self._end_round("success")
        for number, labelled, metrics in rounds:
            self._run.log_at(number, metrics, labelled)
        self._run.save()

    def close(self, status: str, reason: str = "") -> None:
        """End the run."""
        ended = "success" if status == "FINISHED" else "failed"
        self._end_round(ended)
        self._run.end(ended)

    def _end_round(self, status: str) -> None:
        if self._round is not None:
            self._round.end(status)
            self._round = None


class RepeatsLeftOut(Logger):
    """Hands metrics on to a logger, except what an earlier process has handed on.

    Args:
        logger: adds to what it finds in the folder.
        folder: where the last recorded step, or round, of each metric is noted.
    """

    def __init__(self, logger: Logger, folder: Path) -> None:
        super().__init__()
        self.logger = logger
        folder.mkdir(parents=True, exist_ok=True)
        self._record = folder / RECORD_FILE
        self._last_steps: dict[str, int] = {}
        if self._record.is_file():
            self._last_steps = read_json(self._record)["last_steps"]
        self._saved_at = time.monotonic()

    @property
    def name(self) -> str | None:
        """The logger's."""
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        """The logger's."""
        return self.logger.version

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Hand them on."""
        self.logger.log_hyperparams(params, *args, **kwargs)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hand on what is new; see that it reaches the disk now and then."""
        self.log_at(step or 0, metrics, step or 0)
        if time.monotonic() - self._saved_at > FLUSH_SECONDS:
            self.save()

    def log_at(self, position: int, metrics: Mapping[str, float], step: int) -> None:
        """Hand on what is new.

        Args:
            position: by which repeats are known, a step or a round; it rises from call to call.
            metrics: by name.
            step: that the logger is given. Rounds that label nothing new share one.
        """
        if new := without_repeats(metrics, position, self._last_steps):
            self.logger.log_metrics(new, step)

    @rank_zero_only
    def save(self) -> None:
        """Write what was handed on; then note that it is there."""
        self.logger.save()
        write_json(self._record, {"last_steps": self._last_steps})
        self._saved_at = time.monotonic()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what was handed on: training, testing and scoring each say that they are done."""
        self.save()

    def end(self, status: str) -> None:
        """Write what was handed on; end the logger: ``success`` or ``failed``."""
        self.save()
        self.logger.finalize(status)
