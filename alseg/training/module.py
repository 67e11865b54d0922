"""The LightningModule around a 3D segmentation network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from monai.inferers import Inferer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from alseg.core.metric_names import DICE
from alseg.data.source_grid import classes_on_source_grid
from alseg.networks.committee import reported_network
from alseg.networks.low_precision import check_low_precision
from alseg.networks.shared_prefix import plain_forward
from alseg.training.annotated_loss import AnnotatedLoss
from alseg.training.evaluation import Evaluation
from alseg.training.marginal_loss import marginal_logits
from alseg.training.metrics import Calibration, CaseMetrics, hard_labels
from alseg.training.recipe import Recipe
from alseg.training.weighting import weighted_loss


class SegmentationModule(pl.LightningModule):
    """Trains and evaluates one network.

    Args:
        network: maps [B, channels, d, h, w] to logits [B, C, d, h, w].
        recipe: what it is trained with.
        inferer: runs the network over the windows of a whole volume in evaluation.
        classes: the foreground class names.
        evaluation: how it is evaluated. While it trains, Dice on the preprocessed grid validates.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        inferer: Inferer,
        classes: Sequence[str],
        evaluation: Evaluation | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.loss = AnnotatedLoss(recipe.loss)
        self.inferer = inferer
        self.evaluation = evaluation or Evaluation()
        self.case_metrics = CaseMetrics(classes, self.evaluation)
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

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Refuse to train in a precision in which a CPU gives wrong numbers for the network.

        Raises:
            PrecisionError: if it does, with the first batch of a size.
        """
        network = reported_network(self.network)
        with self.trainer.precision_plugin.forward_context():
            check_low_precision(network, batch["image"], with_gradients=True)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step on patches: ``image`` [B, channels, d, h, w], ``label`` [B, 1, d, h, w]."""
        loss = self.batch_loss(self.network, batch)
        self.log_loss(loss, len(batch["image"]), batch_idx)
        return loss

    def log_loss(self, loss: Tensor, batch_size: int, batch_idx: int) -> None:
        """Log the loss of a step that loggers write, or that a validation follows.

        Lightning takes a millisecond for it, whether anybody reads it or not.
        """
        trainer: Any = self.trainer
        step = trainer.global_step + 1
        every = ((step, trainer.log_every_n_steps), (batch_idx + 1, trainer.val_check_batch))
        is_read = any(interval and number % interval == 0 for number, interval in every)
        if is_read or step >= trainer.max_steps:
            self.log("loss/train", loss, prog_bar=True, batch_size=batch_size)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move a batch, except for what only the CPU works on: matrices, and labels of files."""
        stays = {name: batch[name] for name in ("geometry", "source_label") if name in batch}
        moves = {name: value for name, value in batch.items() if name not in stays}
        return super().transfer_batch_to_device(moves, device, dataloader_idx) | stays

    def on_validation_epoch_start(self) -> None:
        """Start a fresh collection of metrics."""
        used = self.evaluation.in_training if self._is_training else self.evaluation
        self.case_metrics = CaseMetrics(self.case_metrics.classes, used)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Sliding-window prediction of one whole volume [1, channels, D, H, W]."""
        self._compare(batch, self.inferer(batch["image"], plain_forward(self.network)))

    def on_validation_epoch_end(self) -> None:
        """Log the means of the metrics, and each class's."""
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        """Start a fresh collection of metrics and probabilities."""
        self.case_metrics = CaseMetrics(self.case_metrics.classes, self.evaluation)
        self.calibration.reset()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As ``validation_step``, on a test volume; collects its calibration as well."""
        (case_id,) = batch["case_id"]
        logits = self.inferer(batch["image"], plain_forward(self.network))
        self._compare(batch, logits)
        if "annotated_classes" in batch:
            logits = marginal_logits(logits, batch["annotated_classes"])
        self.calibration.update(case_id, logits, batch["label"])

    def on_test_epoch_end(self) -> None:
        """Log the means of the metrics, and each class's."""
        self._log_metrics("test")
        self.calibration.take_all()

    @torch.no_grad()
    def predict_labels(self, image: Tensor) -> Tensor:
        """Deterministic prediction: [1, channels, D, H, W] -> class indices [1, 1, D, H, W]."""
        return hard_labels(self.inferer(image, plain_forward(self.network)))

    @property
    def _is_training(self) -> bool:
        return bool(self.trainer.state.fn == TrainerFn.FITTING)

    def _compare(self, batch: dict[str, Any], logits: Tensor) -> None:
        """Add the metrics of a case, on the grid of its file if the batch has its label there."""
        (case_id,) = batch["case_id"]
        geometry = {name: values[0] for name, values in batch["geometry"].items()}
        if "source_label" in batch:
            label, affine = batch["source_label"], geometry["source_affine"]
            probabilities = torch.softmax(logits[0].float(), dim=0)  # [C, d, h, w]
            prediction = classes_on_source_grid(probabilities, geometry)[None, None]
        else:
            label, affine, prediction = batch["label"], geometry["affine"], hard_labels(logits)
        annotated = batch["annotated_classes"][0] if "annotated_classes" in batch else None
        self.case_metrics.update(case_id, prediction, label, affine, annotated)

    def _log_metrics(self, part: str) -> None:
        cases = self.case_metrics
        cases.take_all()  # so that all devices log, and choose checkpoints by, the same number
        # the curve of a training is of the validations in it, not of what the round reports after
        logger = None if part == "test" or self._is_training else False
        for metric in cases.evaluation.metrics:
            by_class = {f"{metric}/{part}/{n}": v for n, v in cases.by_class(metric).items()}
            mean = cases.mean(metric)
            self.log(f"{metric}/{part}", mean, prog_bar=metric == DICE, logger=logger)
            self.log_dict(by_class, logger=logger)
