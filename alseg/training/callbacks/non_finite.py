"""What to do about a training step whose loss or gradients are not finite."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor

from alseg.core.errors import TrainingError
from alseg.system.distributed import gathered
from alseg.system.files import write_tensors

log = logging.getLogger(__name__)

ON_NON_FINITE = ("stop", "skip")


class NonFiniteGuard(pl.Callback):
    """Stops at a non-finite loss or gradient, or leaves the step out.

    A step that is left out changes neither weights nor buffers; it counts as a step of the round.
    The batch and the weights before the step are saved when training stops.

    Args:
        action: ``stop`` or ``skip``.
        path: where what is needed to look into it is saved.
    """

    def __init__(self, action: str, path: Path) -> None:
        self.action, self.path = action, path
        self.skipped = 0
        self._batch: dict[str, Any] = {}
        # of the module: to look for them in each step takes as long as to look at them
        self._parameters: list[Tensor] = []
        self._buffers: list[Tensor] = []
        self._buffers_before: list[Tensor] = []
        self._loss = math.nan

    def state_dict(self) -> dict[str, int]:
        """The count, for checkpoints."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take over what ``state_dict`` gave."""
        self.skipped = state_dict["skipped"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find what the steps look at."""
        self._parameters, self._buffers = list(pl_module.parameters()), list(pl_module.buffers())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep what the step's forward pass may spoil: batch norm takes in what it sees."""
        self._batch = batch
        self._buffers_before = [buffer.clone() for buffer in self._buffers]

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Note the loss."""
        self._loss = float(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Stop, or leave the step out, if any device met something that is not finite.

        Raises:
            TrainingError: naming the cases of the batch.
        """
        finite = math.isfinite(self._loss) and (
            scales_gradients(trainer) or gradients_are_finite(self._parameters)
        )
        if all(gathered(finite)):
            return
        with torch.no_grad():
            for buffer, before in zip(self._buffers, self._buffers_before, strict=True):
                buffer.copy_(before)
        cases = ", ".join(
            dict.fromkeys(case_id for ids in gathered(self._case_ids()) for case_id in ids)
        )
        loss_is_finite = all(gathered(math.isfinite(self._loss)))
        what = "a gradient" if loss_is_finite else "the loss"
        message = f"{what} is not finite in step {trainer.global_step + 1}, in {cases}"
        if self.action == "skip":
            optimizer.zero_grad(set_to_none=True)  # optimisers leave out what has no gradient
            self.skipped += 1
            log.warning(f"{message}; the step is left out")
            return
        if trainer.is_global_zero:
            write_tensors(
                self.path,
                {
                    "step": trainer.global_step + 1,
                    "case_ids": self._case_ids(),
                    "loss": self._loss,
                    "batch": {k: v for k, v in self._batch.items() if isinstance(v, Tensor)},
                    "state_dict": pl_module.state_dict(),
                },
            )
        raise TrainingError(
            f"{message}; the batch and the weights before the step are in {self.path}, and "
            "on_nonfinite=skip leaves such steps out"
        )

    def _case_ids(self) -> list[str]:
        return list(self._batch.get("case_id", ()))


def gradients_are_finite(parameters: Sequence[Tensor]) -> bool:
    """Whether the norm of all gradients is finite."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return bool(torch.nn.utils.get_total_norm(gradients).isfinite())


def scales_gradients(trainer: pl.Trainer) -> bool:
    """Whether the precision scales the loss, and so leaves out steps that overflow by itself."""
    plugin = trainer.precision_plugin
    return isinstance(plugin, MixedPrecision) and plugin.scaler is not None
