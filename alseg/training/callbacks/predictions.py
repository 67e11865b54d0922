"""What a prediction run returns, from all devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from alseg.system.distributed import gathered
from alseg.training.callbacks.progress import progress_callbacks


class Collection(pl.Callback):
    """Keeps the outputs of ``predict_step``; Lightning's own return refuses frozen dataclasses."""

    def __init__(self, outputs: Iterable[Any] = ()) -> None:
        self.outputs: list[Any] = list(outputs)

    def keep(self, outputs: list[Any]) -> None:
        """Keep the outputs of some cases."""
        self.outputs += outputs

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the outputs of the cases that are done."""
        self.keep(outputs)


def gather(outputs: list[Any]) -> list[Any]:
    """All ranks' outputs, those of one case, or one region of it, once.

    Distributed samplers fill up uneven parts by repeating cases. A case's masks depend only on its
    name, so the repetitions are equal and the first is kept. (In a race one of them may be
    predicted and the other exact: either is right about the query.)
    """
    parts = gathered(outputs)
    if len(parts) == 1:
        return outputs  # with repetitions, if there are any: those would be a mistake
    by_unit = {_unit(output): output for part in reversed(parts) for output in part}
    return list(by_unit.values())


def _unit(output: Any) -> tuple[str, Any]:
    return output.case_id, getattr(output, "region", None)


def predictions(
    make_trainer: Callable[..., pl.Trainer],
    module: pl.LightningModule,
    volumes: DataLoader,
    title: str,
) -> list[Any]:
    """Outputs of ``predict_step`` with a ``case_id``: one a case, of all devices.

    Args:
        make_trainer: builds a Lightning trainer from its settings.
        module: predicts.
        volumes: one at a time.
        title: for the progress bar.
    """
    collection = Collection()
    predict(make_trainer, module, volumes, [collection, *progress_callbacks(title)])
    return gather(collection.outputs)


def predict(
    make_trainer: Callable[..., pl.Trainer],
    module: pl.LightningModule,
    volumes: DataLoader,
    callbacks: Sequence[pl.Callback],
) -> None:
    """Let a module look at volumes; what it returns is for the callbacks.

    Args:
        make_trainer: builds a Lightning trainer from its settings.
        module: predicts; it was made with all that it needs.
        volumes: one at a time.
        callbacks: of the trainer.
    """
    trainer = make_trainer(
        logger=False, enable_checkpointing=False, added_callbacks=list(callbacks)
    )
    trainer.predict(module, volumes, return_predictions=False)
