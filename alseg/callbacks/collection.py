"""What a prediction run returns, from all devices."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from alseg.callbacks.progress import progress_callbacks
from alseg.distributed import gathered
from alseg.experiment import Experiment


class Collection(pl.Callback):
    """Keeps the outputs of ``predict_step``; Lightning's own return refuses frozen dataclasses."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep one output."""
        self.outputs.append(outputs)


def predictions(
    experiment: Experiment, module: pl.LightningModule, volumes: DataLoader, title: str
) -> list[Any]:
    """Outputs of ``predict_step`` with a ``case_id``: one a case, of all devices.

    Args:
        experiment: makes the trainer.
        module: predicts.
        volumes: one at a time.
        title: for the progress bar.
    """
    collection = Collection()
    trainer = experiment.make_trainer(
        logger=False,
        enable_checkpointing=False,
        callbacks=[collection, *progress_callbacks(title)],
    )
    trainer.predict(module, volumes, return_predictions=False)
    return list({o.case_id: o for part in gathered(collection.outputs) for o in part}.values())
