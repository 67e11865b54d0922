"""One network's training: fitted, continued, its weights loaded again."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from alseg.core.errors import DataError
from alseg.data.datamodule import PoolDataModule
from alseg.system.distributed import rank
from alseg.system.files import checksum_of, newest_intact, read_tensors
from alseg.training.callbacks.checkpoints import BestWeights, TrainingCheckpoint
from alseg.training.callbacks.non_finite import NonFiniteGuard
from alseg.training.module import SegmentationModule

log = logging.getLogger(__name__)


BEST, LAST = "best", "last"  # names of a round's checkpoints
# the best of each part, in a round whose training has two
SUPERVISED, FINE_TUNED = f"{BEST}_supervised", f"{BEST}_fine_tuned"


@dataclass(frozen=True)
class Training:
    """One network's training in a round, in the middle of which a later process can continue.

    Attributes:
        trainer: for this training; the round's own continues to evaluate and score.
        checkpoint: saves the training now and then.
        guard: watches the losses.
        best: keeps the weights of the best validation Dice, or the last ones if nothing validates.
    """

    trainer: pl.Trainer
    checkpoint: TrainingCheckpoint
    guard: NonFiniteGuard
    best: BestWeights

    def fit(self, module: SegmentationModule, data: PoolDataModule, seed: int) -> dict[str, Any]:
        """Train, from where an earlier process has left it.

        Args:
            module: with the network's first weights.
            data: serves the round.
            seed: of what draws from the global generator: dropout in training.

        Returns:
            ``seconds``, ``skipped_steps`` and ``best_dice``, of validation; None if it never was
            a number.
        """
        self.checkpoint.seed = seed
        started = self._started()
        torch.manual_seed(seed)
        try:
            self.trainer.fit(module, datamodule=data, ckpt_path=started, weights_only=True)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if started is None or self.checkpoint.stepped:
                raise
            raise DataError(
                f"{started} does not hold what it takes to continue: {error}; delete it, and this "
                "training starts again"
            ) from error
        if not self.best.is_ours:
            raise DataError(
                f"{self.best.path} is not what this training has left there; delete it, and this "
                "training starts again"
            )
        return {
            "seconds": round(self.checkpoint.seconds, 3),
            "skipped_steps": self.guard.skipped,
            "best_dice": self.best_dice,
        }

    def delete(self) -> None:
        """Delete the checkpoints and the weights of a training that is done, and whose network is.

        Those of a network that only judges a fold are of no further use.
        """
        self.checkpoint.delete()
        if rank() == 0:
            self.best.path.unlink(missing_ok=True)

    @property
    def best_dice(self) -> float | None:
        """The best validation Dice so far; None if it never was a number."""
        score = self.best.best_model_score
        return None if score is None or not torch.isfinite(score) else float(score)

    def _started(self) -> Path | None:
        """The checkpoint to continue from."""
        found = newest_intact(self.checkpoint.path, read_tensors, log.warning)
        if found is None:
            return None
        path, content = found
        try:
            ours = content["callbacks"][self.checkpoint.state_key]["seed"] == self.checkpoint.seed
            best = content["callbacks"][self.best.state_key]["checksum"]
            step = int(content["global_step"])
        except (KeyError, TypeError, ValueError):
            ours, best, step = False, "", 0
        if not ours:
            log.warning(f"{path} is of no part of this training, which starts again")
            return None
        if best and checksum_of(self.best.path) != best and not is_later(self.best.path, step):
            return None
        log.info(f"continuing after step {step}, from {path}")
        return path


def member_name(member: int, name: str = BEST) -> str:
    """The name of a checkpoint of an ensemble's member; the first is the round's own network."""
    return name if member == 1 else f"{name}_member_{member}"


def checkpoints(*names: str) -> tuple[str, ...]:
    """The files of a round's checkpoints."""
    return tuple(f"{name}.ckpt" for name in names)


def is_later(checkpoint: Path, step: int) -> bool:
    """Whether weights are of a later step, which is repeated and writes them again; says if not."""
    try:
        found = read_tensors(checkpoint)["global_step"]
        if found > step:
            return True
        problem = f"{checkpoint} is damaged: it is not what this training has left there"
    except DataError as error:
        problem = str(error)
    except (KeyError, TypeError):
        problem = f"{checkpoint} holds no weights of a training"
    log.warning(f"{problem}; what it is needed for starts again")
    return False


def load_weights(network: torch.nn.Module, checkpoint: Path) -> None:
    """Load the network's weights from a checkpoint of its LightningModule, without unpickling.

    Raises:
        DataError: if the checkpoint is missing, damaged or of another network.
    """
    try:
        weights = read_tensors(checkpoint)["state_dict"]
        network.load_state_dict(
            {k.removeprefix("network."): v for k, v in weights.items() if k.startswith("network.")}
        )
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise DataError(f"cannot load the weights in {checkpoint}: {error}") from error
