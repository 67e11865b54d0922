"""The training of a round: its network, that network's second stage, the members of an ensemble."""

from __future__ import annotations

from dataclasses import dataclass

import pytorch_lightning as pl
import torch

from alseg.active.fold_training import train_folds
from alseg.active.pseudo_label_training import train_on_pseudo_labels
from alseg.active.round import Round
from alseg.active.round_networks import (
    kept_for_next,
    n_networks,
    round_training,
    start_network,
)
from alseg.networks.mean_prediction import MeanPrediction
from alseg.system.distributed import rank
from alseg.system.interruption import interruption
from alseg.training.fit import BEST, LAST, SUPERVISED, checkpoints, load_weights, member_name
from alseg.training.module import SegmentationModule

FINE_TUNING = "training_fine_tuning"  # the stage of a round's semi-supervised fine-tuning
TRAINED = ("training", "member_", "fold_")  # how the stages begin that train a network


@dataclass(frozen=True)
class Trained:
    """What a round has trained.

    Attributes:
        module: around the round's network, with its best weights.
        trainer: of its training, which has the round's loggers.
        members: further networks, for the mean prediction that is evaluated and to score.
        evaluated: around what is evaluated: the round's network, or several whose predictions are
            averaged.
    """

    module: SegmentationModule
    trainer: pl.Trainer
    members: tuple[torch.nn.Module, ...]
    evaluated: SegmentationModule


def train(this_round: Round) -> Trained:
    """Train the networks of a round; stages that are finished are loaded."""
    module, trainer = train_first(this_round)
    if this_round.semi_supervised is not None and FINE_TUNING not in this_round.stages:
        with interruption.delayed():
            result = train_on_pseudo_labels(
                this_round,
                this_round.semi_supervised,
                module,
                this_round.stages["training"]["best_dice"],
            )
            this_round.stages.finish(FINE_TUNING, checkpoints(BEST, LAST), **result)
    n = n_networks(this_round.experiment, asks=not this_round.is_last)
    members = tuple(train_member(this_round, number, n) for number in range(2, n + 1))
    train_folds(this_round)
    load_weights(module.network, this_round.folder / f"{BEST}.ckpt")
    return Trained(module, trainer, members, evaluated_module(this_round, module, members))


def evaluated_module(
    this_round: Round, module: SegmentationModule, members: tuple[torch.nn.Module, ...]
) -> SegmentationModule:
    """The module around what is evaluated, by ``evaluation.networks``."""
    experiment = this_round.experiment
    n_evaluated = experiment.evaluation.networks
    if n_evaluated == 1:
        return module
    networks = (module.network, *members)[:n_evaluated]
    return experiment.make_module(MeanPrediction(networks), experiment.round_recipe)


def train_first(this_round: Round) -> tuple[SegmentationModule, pl.Trainer]:
    """Train the round's network, all of its steps or those of the first stage."""
    experiment, n_labelled = this_round.experiment, len(this_round.pool.units)
    name, n_steps = BEST, experiment.steps_per_round
    if this_round.semi_supervised is not None:
        name, n_steps = SUPERVISED, n_steps - this_round.semi_supervised.steps(n_steps)
    module = experiment.make_module(
        start_network(this_round), experiment.round_recipe.for_steps(n_steps)
    )
    experiment.data.start_round(this_round.parts_with_repeats, this_round.number, n_steps)
    loggers = experiment.tracker.round_loggers(this_round.number, n_labelled, this_round.folder)
    training = round_training(this_round, name, f"{n_labelled} labelled", n_steps, loggers)
    if "training" not in this_round.stages:
        # Dropout in training draws from the global generator; all else has generators of its own.
        # Devices see different draws, and drop different units.
        seed = this_round.seed(f"training/{rank()}" if rank() else "training")
        with interruption.delayed():
            result = training.fit(module, experiment.data, seed)
            training.trainer.save_checkpoint(this_round.folder / f"{LAST}.ckpt", weights_only=True)
            # a second stage leaves a last one of its own
            files = (name,) if name == SUPERVISED else (name, LAST)
            this_round.stages.finish("training", checkpoints(*files), **result)
    else:  # the evaluation is logged at the step at which the training has ended
        training.trainer.fit_loop.epoch_loop._batches_that_stepped = n_steps
    training.checkpoint.delete()
    return module, training.trainer


def train_member(this_round: Round, member: int, n_members: int) -> torch.nn.Module:
    """Train one more member of an ensemble; its weights come in eval mode.

    Its first weights, batches, augmentation and dropout have seeds of their own; all else is as for
    the round's first network. Where rounds continue, it continues from its own weights.

    Args:
        this_round: the round; a member that is trained already is loaded.
        member: from 2 on; the first member is the round's own network.
        n_members: how many the round trains.
    """
    experiment, stages, number = this_round.experiment, this_round.stages, this_round.number
    data, n_steps = experiment.data, experiment.steps_per_round
    name, stage = member_name(member), f"member_{member}"
    module = experiment.make_module(start_network(this_round, member), experiment.round_recipe)
    if stage not in stages:
        draw_seed = this_round.seed(f"member/{member}")
        data.start_round(this_round.parts_with_repeats, number, n_steps, draw_seed)
        title = f"member {member}/{n_members}"
        training = round_training(this_round, name, title, n_steps)
        with interruption.delayed():
            result = training.fit(module, data, this_round.seed(f"training/{member}"))
            names = [name]
            if kept_for_next(experiment.plan) == LAST:
                names.append(member_name(member, LAST))
                last = this_round.folder / f"{names[-1]}.ckpt"
                training.trainer.save_checkpoint(last, weights_only=True)
            stages.finish(stage, checkpoints(*names), **result)
        training.checkpoint.delete()
    load_weights(module.network, this_round.folder / f"{name}.ckpt")
    return module.network.eval()
