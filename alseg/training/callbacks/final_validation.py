"""A validation of a training's last weights, whatever the interval."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class FinalValidation(pl.Callback):
    """Validates after the last step as well where the interval does not end there.

    Lightning validates every ``val_check_interval`` steps only, so the steps after the last full
    interval, in which a schedule's learning rate is lowest, would never be up for the best weights.
    """

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Ask for an end, before which Lightning validates, in the step that is the last anyway."""
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True
