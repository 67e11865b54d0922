"""The networks of a round: made, started from others, and what each of them is trained with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from alseg.active.experiment import Experiment
from alseg.active.plan import Plan
from alseg.active.round import Round
from alseg.core.errors import ConfigError
from alseg.core.seeding import seed_for
from alseg.run.stages import check_unchanged
from alseg.training.callbacks.checkpoints import BestWeights, TrainingCheckpoint
from alseg.training.callbacks.final_validation import FinalValidation
from alseg.training.callbacks.non_finite import NonFiniteGuard
from alseg.training.callbacks.progress import progress_callbacks
from alseg.training.fit import BEST, LAST, Training, load_weights, member_name

MONITOR = "dice/val"  # what the best one is chosen by


def new_network(experiment: Experiment, member: int = 1) -> torch.nn.Module:
    """A network with first weights of its own.

    They are the same in every round: rounds from scratch then differ only by their data.

    Args:
        experiment: the parts.
        member: of an ensemble or a committee; 1 is the network of a run without them.
    """
    purpose = "network" if member == 1 else f"network/{member}"
    torch.manual_seed(seed_for(experiment.plan.seed, 0, purpose))
    return experiment.make_network()


def fresh_network(experiment: Experiment) -> torch.nn.Module:
    """What a round trains, untrained: a network, or a committee of them."""
    return experiment.source.untrained(partial(new_network, experiment))


def start_network(this_round: Round, member: int = 1) -> torch.nn.Module:
    """The network that a round starts from, by the plan's ``round_start``.

    Args:
        this_round: the round.
        member: of an ensemble, which continues from its own weights.
    """
    experiment = this_round.experiment
    network = fresh_network(experiment) if member == 1 else new_network(experiment, member)
    checkpoint = past_weights(experiment, this_round.number, member)
    if checkpoint is not None:
        check_unchanged(checkpoint)
        load_weights(network, checkpoint)
    return network


def past_weights(experiment: Experiment, round_number: int, member: int = 1) -> Path | None:
    """The checkpoint that a network of a round continues from; None if it starts anew.

    Args:
        experiment: the parts.
        round_number: the round that is to train.
        member: of an ensemble.

    Raises:
        ConfigError: if the round before has trained fewer networks.
    """
    plan = experiment.plan
    if plan.round_start == "scratch" or round_number == 1:
        return None
    name = member_name(member, kept_for_next(plan))
    checkpoint = experiment.round_folder(round_number - 1) / f"{name}.ckpt"
    if member > 1 and not checkpoint.is_file():
        raise ConfigError(
            f"there is no {checkpoint}, from which network {member} of round {round_number} is to "
            "continue: that round has trained fewer networks; go on with as many, or start another "
            "run"
        )
    return checkpoint


def n_networks(experiment: Experiment, *, asks: bool) -> int:
    """How many networks a round trains, one after another: for its evaluation, and its query.

    Args:
        experiment: the parts.
        asks: whether a query follows the round.
    """
    scores = experiment.strategy.needs_passes and asks
    return max(experiment.evaluation.networks, experiment.source.n_members if scores else 1)


def kept_for_next(plan: Plan) -> str:
    """Which checkpoint of a round the next one continues from, if it continues."""
    return LAST if plan.round_start == "continue_last" else BEST


def round_training(
    this_round: Round, name: str, title: str, n_steps: int, loggers: Sequence[Logger] = ()
) -> Training:
    """A training of one network of a round, with a fresh trainer.

    Args:
        this_round: the round.
        name: the weights of the best validation Dice are kept under it; the last ones where no case
            only validates.
        title: for the progress bar, behind the round's.
        n_steps: optimiser steps.
        loggers: of the round.
    """
    experiment, folder = this_round.experiment, this_round.folder
    interval = experiment.plan.val_interval_steps(
        len(this_round.parts.training), experiment.data.batch_size
    )
    validates = bool(this_round.parts.validation)
    best = BestWeights(
        folder,
        name,
        monitor=MONITOR if validates else None,
        mode="max",
        save_weights_only=True,
        # Lightning takes an interval of 1 step for one epoch; without one a training is one epoch
        save_on_train_epoch_end=not validates,
        enable_version_counter=False,
    )
    every_n_steps = experiment.checkpoint_every_n_steps
    checkpoint = TrainingCheckpoint(folder / f"training_{name}.ckpt", every_n_steps)
    guard = NonFiniteGuard(experiment.on_nonfinite, folder / f"nonfinite_{name}.pt")
    progress = progress_callbacks(f"{this_round.title} · {title}")
    trainer: pl.Trainer = experiment.make_trainer(
        max_steps=n_steps,
        val_check_interval=min(interval, n_steps),
        limit_val_batches=None if validates else 0,
        logger=list(loggers),
        added_callbacks=[best, checkpoint, guard, FinalValidation(), *progress],
    )
    return Training(trainer, checkpoint, guard, best)
