"""A check that a network can be trained in bfloat16 on this CPU."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from alseg.networks.committee import reported_network
from alseg.networks.low_precision import check_low_precision


class PrecisionGuard(pl.Callback):
    """Refuses to train in a precision in which this CPU gives wrong numbers for the network."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Check it with the images of the first batch, [B, channels, d, h, w].

        Raises:
            PrecisionError: if it does.
        """
        if batch_idx == 0:
            network: Any = pl_module.network
            with trainer.precision_plugin.forward_context():
                check_low_precision(reported_network(network), batch["image"])
