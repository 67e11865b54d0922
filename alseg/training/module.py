"""The LightningModule around a 3D segmentation network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from alseg.networks.shared_prefix import plain_forward
from alseg.training.annotated_loss import AnnotatedLoss
from alseg.training.marginal_loss import marginal_logits
from alseg.training.metrics import Calibration, CaseDice, hard_labels
from alseg.training.recipe import Recipe
from alseg.training.weighting import weighted_loss


class SegmentationModule(pl.LightningModule):
    """Trains and evaluates one network.

    Args:
        network: maps [B, channels, d, h, w] to logits [B, C, d, h, w].
        recipe: what it is trained with.
        inferer: runs the network over the windows of a whole volume in evaluation.
        classes: the foreground class names.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        inferer: Inferer,
        classes: Sequence[str],
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.loss = AnnotatedLoss(recipe.loss)
        self.inferer = inferer
        self.dice = CaseDice(classes)
        self.calibration = Calibration()

    def configure_optimizers(self) -> Any:
        """The optimiser, and its schedule if there is one."""
        optimizer = self.recipe.make_optimizer(self.network.parameters())
        schedule = self.recipe.make_schedule(optimizer)
        if schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def batch_loss(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The loss of one network on a training batch, a scalar; samples may carry a ``weight``."""
        logits = network(batch["image"])
        if "annotated_classes" in batch:
            logits = marginal_logits(logits, batch["annotated_classes"])
        if "weight" in batch:
            return weighted_loss(self.loss, logits, batch["label"], batch["weight"])
        return self.loss(logits, batch["label"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step on patches: ``image`` [B, channels, d, h, w], ``label`` [B, 1, d, h, w]."""
        loss = self.batch_loss(self.network, batch)
        self.log("loss/train", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start a fresh collection of Dice values."""
        self.dice.reset()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Sliding-window prediction of one whole volume [1, channels, D, H, W]."""
        (case_id,) = batch["case_id"]
        self.dice.update(case_id, self.predict_labels(batch["image"]), batch["label"])

    def on_validation_epoch_end(self) -> None:
        """Log the mean foreground Dice and each class's."""
        self._log_dice("val")

    def on_test_epoch_start(self) -> None:
        """Start a fresh collection of Dice values and probabilities."""
        self.dice.reset()
        self.calibration.reset()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As ``validation_step``, on a test volume; collects its calibration as well."""
        (case_id,) = batch["case_id"]
        logits = self.inferer(batch["image"], plain_forward(self.network))
        self.dice.update(case_id, hard_labels(logits), batch["label"])
        if "annotated_classes" in batch:
            logits = marginal_logits(logits, batch["annotated_classes"])
        self.calibration.update(case_id, logits, batch["label"])

    def on_test_epoch_end(self) -> None:
        """Log the mean foreground Dice and each class's."""
        self._log_dice("test")
        self.calibration.take_all()

    @torch.no_grad()
    def predict_labels(self, image: Tensor) -> Tensor:
        """Deterministic prediction: [1, channels, D, H, W] -> class indices [1, 1, D, H, W]."""
        return hard_labels(self.inferer(image, plain_forward(self.network)))

    def _log_dice(self, part: str) -> None:
        self.dice.take_all()  # so that all devices log, and choose checkpoints by, the same number
        self.log(f"dice/{part}", self.dice.mean(), prog_bar=True)
        self.log_dict(
            {f"dice/{part}/{name}": value for name, value in self.dice.by_class().items()}
        )
