"""Progress of a round: a bar with the time left on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.trainer.states import TrainerFn

log = logging.getLogger(__name__)


class ProgressLines(pl.Callback):
    """Logs a line at each validation and while the pool is scored, with the time left."""

    def __init__(self, title: str, seconds_between: float = 15.0) -> None:
        self.title = title
        self.seconds_between = seconds_between
        self._started = self._logged = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the step, the loss and the validation Dice, while training."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        values = trainer.callback_metrics
        loss, dice = float(values["train/loss"]), float(values["val/dice"])
        left = self._left(trainer.global_step, trainer.max_steps)
        log.info(
            f"{self.title} · step {trainer.global_step}/{trainer.max_steps} · loss {loss:.3f} · "
            f"validation Dice {dice:.3f} · {left} left"
        )

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = self._logged = time.monotonic()

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log how far the scoring is, now and then and at its end."""
        total, done = int(trainer.num_predict_batches[0]), batch_idx + 1
        now = time.monotonic()
        if now - self._logged > self.seconds_between or done == total:
            self._logged = now
            rate = done / max(now - self._started, 1e-9)
            log.info(
                f"{self.title} · scored {done}/{total} volumes · {rate:.1f} volumes/s · "
                f"{self._left(done, total)} left"
            )

    def _left(self, done: int, total: int) -> str:
        elapsed = time.monotonic() - self._started
        return duration(elapsed / max(done, 1) * (total - done))


def progress_callbacks(title: str) -> list[pl.Callback]:
    """The callbacks that show a round's progress, by what the output is."""
    bars: list[pl.Callback] = [RichProgressBar()] if sys.stdout.isatty() else []
    return [*bars, ProgressLines(title)]


def duration(seconds: float) -> str:
    """Seconds as people read them: ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
