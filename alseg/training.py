"""Training a round's networks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from alseg.callbacks.checkpoints import BestWeights, TrainingCheckpoint
from alseg.callbacks.final_validation import FinalValidation
from alseg.callbacks.non_finite import NonFiniteGuard
from alseg.callbacks.progress import progress_callbacks
from alseg.data.datamodule import PoolDataModule
from alseg.errors import DataError
from alseg.experiment import Experiment
from alseg.files import checksum_of, newest_sound, read_tensors
from alseg.interruption import interruption
from alseg.models.committee import Committee
from alseg.models.segmentation import SegmentationModule
from alseg.models.svgd import SVGD
from alseg.pool import Pool
from alseg.seeding import seed_for
from alseg.stages import Stages, check_left

log = logging.getLogger(__name__)

BEST, LAST = "best", "last"  # names of a round's checkpoints
# the best of each stage, in a round whose training has two
FIRST_STAGE, SECOND_STAGE = f"{BEST}_first_stage", f"{BEST}_second_stage"
MONITOR = "dice/val"  # what the best one is chosen by


@dataclass(frozen=True)
class Training:
    """One network's training in a round, in the middle of which a later process can go on.

    Attributes:
        trainer: for this training; the round's own goes on to evaluate and score.
        checkpoint: saves the training now and then.
        guard: watches the losses.
        best: keeps the weights of the best validation Dice.
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
                f"{started} does not hold what it takes to go on: {error}; delete it, and this "
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

    @property
    def best_dice(self) -> float | None:
        """The best validation Dice so far; None if it never was a number."""
        score = self.best.best_model_score
        return None if score is None or not torch.isfinite(score) else float(score)

    def _started(self) -> Path | None:
        """The checkpoint to go on from."""
        found = newest_sound(self.checkpoint.path, read_tensors, log.warning)
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
        log.info(f"going on after step {step}, from {path}")
        return path


def train_member(
    experiment: Experiment, pool: Pool, round_number: int, member: int, stages: Stages
) -> torch.nn.Module:
    """Train one more member of an ensemble, which only scores; its weights come in eval mode.

    Its first weights, batches, augmentation and dropout have seeds of their own; all else is as for
    the round's first network. It starts from scratch whatever the plan's ``round_start``: members
    that go on from each other's past would agree more than they should.

    Args:
        experiment: the parts.
        pool: the round's pool.
        round_number: the round.
        member: from 2 on; the first member is the round's own network.
        stages: of the round; a member that is trained already is loaded.
    """
    plan, data = experiment.plan, experiment.data
    name, stage = f"{BEST}_member_{member}", f"member_{member}"
    module = experiment.make_module(new_network(experiment, member))
    if stage not in stages:
        draw_seed = seed_for(plan.seed, round_number, f"member/{member}")
        data.start_round(pool, round_number, experiment.steps_per_round, draw_seed)
        title = (
            f"round {round_number}/{plan.rounds} · member {member}/{experiment.source.n_members}"
        )
        training = round_training(experiment, round_number, len(pool.labelled), name, title)
        with interruption.waits():
            result = training.fit(
                module, data, seed_for(plan.seed, round_number, f"training/{member}")
            )
            stages.finish(stage, checkpoints(name), **result)
        training.checkpoint.delete()
    load_weights(module.network, experiment.round_folder(round_number) / f"{name}.ckpt")
    return module.network.eval()


def new_network(experiment: Experiment, member: int = 1) -> torch.nn.Module:
    """A network with first weights of its own.

    They are the same in every round: rounds from scratch then differ by their data alone.

    Args:
        experiment: the parts.
        member: of an ensemble or a committee; 1 is the network of a run without them.
    """
    purpose = "network" if member == 1 else f"network/{member}"
    torch.manual_seed(seed_for(experiment.plan.seed, 0, purpose))
    return experiment.make_network()


def fresh_network(experiment: Experiment) -> torch.nn.Module:
    """What a round trains, untrained: a network, or a committee of them."""
    if not isinstance(experiment.source, SVGD):
        return new_network(experiment)
    members = range(1, experiment.source.n_particles + 1)
    return Committee([new_network(experiment, member) for member in members])


def start_network(experiment: Experiment, round_number: int) -> torch.nn.Module:
    """The network that a round starts from, by the plan's ``round_start``."""
    plan = experiment.plan
    network = fresh_network(experiment)
    if plan.round_start != "scratch" and round_number > 1:
        name = BEST if plan.round_start == "continue" else LAST
        checkpoint = experiment.round_folder(round_number - 1) / f"{name}.ckpt"
        check_left(checkpoint)
        load_weights(network, checkpoint)
    return network


def round_training(
    experiment: Experiment,
    round_number: int,
    n_labelled: int,
    name: str,
    title: str,
    *,
    n_steps: int | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
) -> Training:
    """A training of one network of a round, with a fresh trainer.

    Args:
        experiment: the parts.
        round_number: the round.
        n_labelled: the round's labelled volumes.
        name: the weights of the best validation Dice are kept under it.
        title: for the progress bar.
        n_steps: optimiser steps; None for those of a round.
        loggers: of the round.
        callbacks: besides those that checkpoint and show progress.
    """
    plan, folder = experiment.plan, experiment.round_folder(round_number)
    n_steps = experiment.steps_per_round if n_steps is None else n_steps
    interval = plan.val_interval_steps(n_labelled, experiment.data.batch_size)
    best = BestWeights(
        folder,
        name,
        monitor=MONITOR,
        mode="max",
        save_weights_only=True,
        save_on_train_epoch_end=False,  # Lightning takes an interval of 1 step for one epoch
        enable_version_counter=False,
    )
    checkpoint = TrainingCheckpoint(
        folder / f"training_{name}.ckpt", experiment.checkpoint_every_n_steps
    )
    guard = NonFiniteGuard(experiment.on_nonfinite, folder / f"nonfinite_{name}.pt")
    trainer: pl.Trainer = experiment.make_trainer(
        max_steps=n_steps,
        val_check_interval=min(interval, n_steps),
        logger=list(loggers),
        callbacks=[
            best,
            checkpoint,
            guard,
            FinalValidation(),
            *callbacks,
            *progress_callbacks(title),
        ],
    )
    return Training(trainer, checkpoint, guard, best)


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


def spanning(make_module: partial[SegmentationModule], n_steps: int) -> partial[SegmentationModule]:
    """The same modules, with a learning-rate schedule of so many steps, if it has a length."""
    schedule = make_module.keywords["schedule"]
    if "total_steps" not in getattr(schedule, "keywords", {}):
        return make_module
    return partial(make_module, schedule=partial(schedule, total_steps=n_steps))


def fine_tuning(
    make_module: partial[SegmentationModule], factor: float
) -> partial[SegmentationModule]:
    """The same modules, with a constant learning rate of ``factor`` times the optimiser's."""
    optimizer = make_module.keywords["optimizer"]
    learning_rate = factor * optimizer.keywords["lr"]
    return partial(make_module, optimizer=partial(optimizer, lr=learning_rate), schedule=None)


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
