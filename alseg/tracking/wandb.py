"""``tracking=wandb``: Weights & Biases, offline unless it is wanted otherwise."""

from __future__ import annotations

import os
import shlex
import uuid
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger

from alseg.core.errors import check_flag, check_text
from alseg.tracking.loggers import LoggerTracker, check_installed


class WandbTracker(LoggerTracker):
    """Records a run as one run of Weights & Biases.

    Its metrics by labelled count have the names that they have everywhere; the training curves of
    round 1 come under ``round_01/``. A resumption adds a folder of files, of the same run on the
    server.

    Args:
        project: the project's name.
        run_name: how the pages call the run.
        group: runs that the pages show together.
        entity: user or team; None for the user's default.
        offline: write into the run folder only, for ``wandb sync``; else send to the server.

    Raises:
        ConfigError: if wandb is not installed, or a setting is of no use.
    """

    def __init__(
        self, project: str, run_name: str, group: str, entity: str | None, offline: bool
    ) -> None:
        check_text("tracking.wandb.project", project)
        check_flag("tracking.wandb.offline", offline)
        check_installed("wandb", "wandb")
        super().__init__("wandb")
        self._settings: dict[str, Any] = {
            "project": project,
            "name": run_name,
            "group": group,
            "entity": entity,
        }
        self._offline = offline
        self._run_on_pages: Any = None

    def new_logger(self, folder: Path, round_number: int | None) -> Logger:
        """A logger of the one run, whose files are in the ``wandb`` folder of the run folder."""
        if round_number is None:
            self._run_on_pages = self._init(folder)
            return WandbLogger(experiment=self._run_on_pages)
        return _OfRound(experiment=self._run_on_pages, prefix=f"round_{round_number:02d}")

    def _init(self, folder: Path) -> Any:
        # not WandbLogger's own: its offline mode is a variable that later runs would inherit
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would send error reports
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb  # here, for it is an extra

        # wandb names the folders of a run's processes run-TIME-ID or offline-run-TIME-ID
        earlier = [path.name.rpartition("-")[2] for path in folder.glob("*run-*-*")]
        run = wandb.init(
            **self._settings,
            id=earlier[0] if earlier else uuid.uuid4().hex[:8],
            resume=None if self._offline else "allow",
            dir=folder.parent,
            mode="offline" if self._offline else "online",
            settings=wandb.Settings(console="off", disable_git=True),
        )
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return run

    def views(self) -> dict[str, str]:
        """What sends the run to the server, if it was kept from it."""
        if not self._offline:
            return {}
        return {"send to W&B": f"wandb sync {shlex.quote(str(self.folder))}/*run-*"}

    def close(self, status: str, reason: str = "") -> None:
        """End the run; a reason is its summary's ``failure``."""
        super().close(status, reason)
        if reason:
            self._run_on_pages.summary["failure"] = reason
        self._run_on_pages.finish(exit_code=0 if status == "FINISHED" else 1)


class _OfRound(WandbLogger):
    LOGGER_JOIN_CHAR = "/"  # between prefix and name
