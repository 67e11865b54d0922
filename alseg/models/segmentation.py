"""The LightningModule around a 3D segmentation network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from alseg.evaluation import Calibration, CaseDice, hard_labels
from alseg.models.committee import reported_network
from alseg.models.features import BottleneckFeatures
from alseg.models.mc_dropout import MaskSeed
from alseg.models.passes import Passes
from alseg.models.uncertainty import MCDropout, UncertaintySource, plain_pass
from alseg.models.weighting import weighted_loss
from alseg.seeding import seed_for
from alseg.strategies.aggregations import mean
from alseg.strategies.measures import entropy
from alseg.strategies.racing import Contender, Heats
from alseg.strategies.statistics import VoxelStatistics, single_pass
from alseg.strategies.strategy import CaseScore, Strategy


@dataclass(frozen=True)
class Scoring:
    """How the pool is scored in a round.

    Attributes:
        strategy: turns statistics into a score.
        source: makes the passes.
        inferer: runs a network over the windows of a volume while scoring.
        base_seed: the run's seed.
        round_number: the round, which the masks depend on.
        members: the networks of an ensemble after the first one, which the module holds.
        heats: let volumes race, which decides how many passes they take; None for all of them.
    """

    strategy: Strategy
    source: UncertaintySource
    inferer: Inferer
    base_seed: int
    round_number: int
    members: tuple[nn.Module, ...] = ()
    heats: Heats | None = None

    def statistics(
        self,
        network: nn.Module,
        image: Tensor,
        case_id: str,
        hidden_label: Tensor | None = None,
    ) -> VoxelStatistics:
        """Statistics of the source's passes, or of a single plain one, over a volume.

        Args:
            network: the round's network, in eval mode.
            image: shape [1, channels, D, H, W].
            case_id: the case, which random masks depend on.
            hidden_label: class indices [D, H, W], for strategies that read labels.
        """
        *_, statistics = self._passes(network, image, case_id, hidden_label, None)
        return statistics

    def score(
        self,
        network: nn.Module,
        image: Tensor,
        case_id: str,
        hidden_label: Tensor | None = None,
        labelled: bool = False,
    ) -> CaseScore:
        """The score of one volume, with features where the strategy asks for them.

        As ``statistics``; ``labelled`` says that the case is a labelled one, of which only the
        features are kept. An ensemble's features are those of its first member.
        """
        features = None
        if self.strategy.features is not None:
            features = BottleneckFeatures(foreground=self.strategy.features == "foreground")
        *_, statistics = self._passes(network, image, case_id, hidden_label, features)
        vector = None if features is None else features.vector()
        return self.strategy.score(case_id, statistics, vector, labelled)

    def race(
        self,
        heats: Heats,
        network: nn.Module,
        image: Tensor,
        case_id: str,
        hidden_label: Tensor | None = None,
        *,
        is_last: bool,
    ) -> list[CaseScore]:
        """Let a volume race for the query.

        Returns:
            The scores of the volumes of its heat if that has been run, or none yet: it is when the
            memory is full, or the volume is the last one.
        """
        assert isinstance(self.source, MCDropout)  # see race_for
        passes = self.source.passes(network, image, self.inferer, self._mask_seed(case_id))

        def scores() -> Iterator[float]:
            for statistics in self._labelled(passes, hidden_label):
                score = self.strategy.score(case_id, statistics).score
                assert score is not None  # a race is for strategies with a measure
                yield score

        contender = Contender(case_id, scores(), self._hint(passes, hidden_label))
        # without a gate nobody knows what the volume will keep: it races alone
        n_bytes = heats.limit if passes.n_bytes is None else passes.n_bytes
        return heats.enter(contender, n_bytes, is_last=is_last)

    def _hint(self, passes: Passes, hidden_label: Tensor | None) -> float | None:
        """The entropy of a gate's deterministic pass, aggregated as the score.

        Its mean where that gives nothing, as with an aggregation that looks at votes alone.
        """
        if passes.deterministic is None:
            return None
        assert self.strategy.aggregation is not None
        plain = single_pass(passes.deterministic)
        for statistics in self._labelled((plain,), hidden_label):
            for aggregation in (self.strategy.aggregation, mean):
                hint = float(aggregation(entropy(statistics), statistics))
                if 0 < hint < math.inf:
                    return hint
        return None

    def _passes(
        self,
        network: nn.Module,
        image: Tensor,
        case_id: str,
        hidden_label: Tensor | None,
        features: BottleneckFeatures | None,
    ) -> Iterator[VoxelStatistics]:
        """The statistics after each pass, or after all of them where the source has but those."""
        mask_seed = self._mask_seed(case_id)
        passes: Iterable[VoxelStatistics]
        if isinstance(self.source, MCDropout) and not self.strategy.deterministic:
            passes = self.source.passes(network, image, self.inferer, mask_seed, features)
        else:
            with features.watching(reported_network(network)) if features else nullcontext():
                passes = (self._whole_statistics(network, image, mask_seed),)
        yield from self._labelled(passes, hidden_label)

    def _labelled(
        self, passes: Iterable[VoxelStatistics], hidden_label: Tensor | None
    ) -> Iterator[VoxelStatistics]:
        """The same statistics, with the hidden label for strategies that read it."""
        for statistics in passes:
            if hidden_label is not None and self.strategy.reads_labels:
                statistics.attach_hidden_label(hidden_label)
            yield statistics

    def _mask_seed(self, case_id: str) -> MaskSeed:
        def mask_seed(pass_index: int, window: int, layer: int) -> int:
            purpose = f"mc_dropout/{pass_index}/{window}/{layer}"
            return seed_for(self.base_seed, self.round_number, purpose, case_id)

        return mask_seed

    def _whole_statistics(
        self, network: nn.Module, image: Tensor, mask_seed: MaskSeed
    ) -> VoxelStatistics:
        if not self.strategy.deterministic:
            networks = (network, *self.members)
            return self.source.statistics(networks, image, self.inferer, mask_seed)
        return single_pass(plain_pass(network, image, self.inferer))


class SegmentationModule(pl.LightningModule):
    """Trains, evaluates and scores with one network.

    Args:
        network: maps [B, channels, d, h, w] to logits [B, C, d, h, w].
        loss: maps (logits, labels [B, 1, d, h, w]) to a scalar.
        optimizer: makes the optimiser from the parameters.
        schedule: makes the learning-rate schedule from the optimiser; one step a training step.
        inferer: runs the network over the windows of a whole volume in evaluation.
        classes: the foreground class names.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[..., Any] | None,
        inferer: Inferer,
        classes: Sequence[str],
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.inferer = inferer
        self.dice = CaseDice(classes)
        self.calibration = Calibration()
        self.scoring: Scoring | None = None

    def configure_optimizers(self) -> Any:
        """The optimiser, and its schedule if there is one."""
        optimizer = self.make_optimizer(self.network.parameters())
        if self.make_schedule is None:
            return optimizer
        schedule = {"scheduler": self.make_schedule(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def batch_loss(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The loss of one network on a training batch, a scalar; samples may carry a ``weight``."""
        logits = network(batch["image"])
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
        logits = self.inferer(batch["image"], self.network)
        self.dice.update(case_id, hard_labels(logits), batch["label"])
        self.calibration.update(case_id, logits, batch["label"])

    def on_test_epoch_end(self) -> None:
        """Log the mean foreground Dice and each class's."""
        self._log_dice("test")
        self.calibration.take_all()

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[CaseScore]:
        """Look at one volume of the pool; returns a few numbers, never a volume.

        They are those of the volume, or in a race of all the volumes that it decides.
        """
        if self.scoring is None:
            raise RuntimeError("scoring has not been set")
        (case_id,) = batch["case_id"]
        hidden_label = batch["hidden_label"][0, 0] if "hidden_label" in batch else None  # [D, H, W]
        case = self.network, batch["image"], case_id, hidden_label
        if self.scoring.heats is not None:
            is_last = batch_idx + 1 == self.trainer.num_predict_batches[0]
            return self.scoring.race(self.scoring.heats, *case, is_last=is_last)
        return [self.scoring.score(*case, labelled=bool(batch["labelled"]))]

    @torch.no_grad()
    def predict_labels(self, image: Tensor) -> Tensor:
        """Deterministic prediction: [1, channels, D, H, W] -> class indices [1, 1, D, H, W]."""
        return hard_labels(self.inferer(image, self.network))

    def _log_dice(self, part: str) -> None:
        self.dice.take_all()  # so that all devices log, and choose checkpoints by, the same number
        self.log(f"dice/{part}", self.dice.mean(), prog_bar=True)
        self.log_dict(
            {f"dice/{part}/{name}": value for name, value in self.dice.by_class().items()}
        )
