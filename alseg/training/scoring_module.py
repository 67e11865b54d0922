"""The LightningModule that scores the volumes of a pool."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import nn

from alseg.scoring.scorer import Scoring
from alseg.strategies.strategy import CaseScore


class ScoringModule(pl.LightningModule):
    """Scores volumes with a trained network.

    Args:
        network: the network, or a committee.
        scoring: how a volume is scored; it makes the stochastic passes.
    """

    def __init__(self, network: nn.Module, scoring: Scoring) -> None:
        super().__init__()
        self.network = network
        self.scoring = scoring

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[CaseScore]:
        """Look at one volume of the pool; returns a few numbers, never a volume.

        They are those of the volume or its regions.
        """
        (case_id,) = batch["case_id"]
        hidden_label = batch["hidden_label"][0, 0] if "hidden_label" in batch else None  # [D, H, W]
        case = self.network, batch["image"], case_id, hidden_label
        if self.scoring.places is not None:
            return self.scoring.regions(*case, labelled=bool(batch["labelled"]))
        if self.scoring.stopping is not None:
            return [self.scoring.score_until_decided(self.scoring.stopping, *case)]
        return [self.scoring.score(*case, labelled=bool(batch["labelled"]))]
