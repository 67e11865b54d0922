"""The networks of a round: made, started from others, trained."""

from __future__ import annotations

from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from alseg.active.experiment import Experiment
from alseg.core.pool import Pool
from alseg.core.seeding import seed_for
from alseg.networks.committee import Committee
from alseg.run.stages import Stages, check_left
from alseg.scoring.svgd import SVGD
from alseg.system.interruption import interruption
from alseg.training.callbacks.checkpoints import BestWeights, TrainingCheckpoint
from alseg.training.callbacks.final_validation import FinalValidation
from alseg.training.callbacks.non_finite import NonFiniteGuard
from alseg.training.callbacks.progress import progress_callbacks
from alseg.training.fit import BEST, LAST, Training, checkpoints, load_weights

MONITOR = "dice/val"  # what the best one is chosen by


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
