"""The order in which a network's activations lie in memory."""

from __future__ import annotations

import pytorch_lightning as pl
import torch


class ChannelsLast(pl.Callback):
    """Keeps the weights of 3D convolutions, and so their activations, with the channels last.

    The values stay; convolutions may sum them in another order, so results differ in their last
    bits. Faster or slower by device, precision and network: see docs/scoring.md.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Reorder the weights, before training, evaluation and scoring."""
        pl_module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
