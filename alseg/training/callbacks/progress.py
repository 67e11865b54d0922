"""Progress of a round: how far training, evaluation and scoring are, and the time left."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from alseg.system.console import Meter, duration
from alseg.system.distributed import rank

log = logging.getLogger(__name__)


class RoundProgress(pl.Callback):
    """Shows how far a stage of a round is; see ``Meter``. Logs each validation while training.

    Args:
        title: what the round is called, such as ``round 2/4 · 10 labelled``.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._meter: Meter | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to show the training, from the step that an earlier process has left."""
        self._begin("step", trainer.max_steps, done=trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show the step and the loss."""
        if self._meter is not None:
            loss = outputs["loss"]
            self._meter.update(trainer.global_step, lambda: f"loss {float(loss):.3f}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the step, the loss and the validation Dice, while training."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._end()
        elif self._meter is not None:
            values = trainer.callback_metrics
            loss, dice = float(values["loss/train"]), float(values["dice/val"])
            log.info(
                f"{self.title} · step {trainer.global_step}/{trainer.max_steps} · "
                f"loss {loss:.3f} · val Dice {dice:.3f}"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The training is done."""
        self._end()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to show an evaluation on the validation volumes."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._begin("validated", trainer.num_val_batches)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any, **more: Any
    ) -> None:
        """Show how many volumes are done."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._one_more()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to show an evaluation on the test volumes."""
        self._begin("tested", trainer.num_test_batches)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any, **more: Any
    ) -> None:
        """Show how many volumes are done."""
        self._one_more()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The evaluation is done."""
        self._end()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to show the scoring."""
        self._begin("scored", trainer.num_predict_batches)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any, **more: Any
    ) -> None:
        """Show how many volumes are done."""
        self._one_more()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log how long the scoring took."""
        if self._meter is not None:
            meter = self._meter
            log.info(f"{self.title} · scored {meter.total} volumes in {duration(meter.seconds)}")
        self._end()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Remove the bar, so that what went wrong stands on a line of its own."""
        self._end()

    def _begin(self, unit: str, total: Any, *, done: int = 0) -> None:
        self._end()
        total = sum(int(n) for n in total) if isinstance(total, list) else int(total)
        self._meter = Meter(self.title, unit, total, done=done)

    def _one_more(self) -> None:
        if self._meter is not None:
            self._meter.update(self._meter.done + 1)

    def _end(self) -> None:
        if self._meter is not None:
            self._meter.close()
            self._meter = None


def progress_callbacks(title: str) -> list[pl.Callback]:
    """The callbacks that show a round's progress: on the first device only."""
    return [RoundProgress(title)] if rank() == 0 else []
