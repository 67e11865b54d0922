"""Training a round's networks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger

from alseg.callbacks.progress import progress_callbacks
from alseg.errors import DataError
from alseg.experiment import Experiment
from alseg.models.committee import Committee
from alseg.models.segmentation import SegmentationModule
from alseg.models.svgd import SVGD
from alseg.pool import Pool
from alseg.seeding import seed_for

BEST, LAST = "best", "last"  # names of a round's checkpoints
MONITOR = "val/dice"  # what the best one is chosen by


def train_member(
    experiment: Experiment, pool: Pool, round_number: int, member: int
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
    """
    plan, data = experiment.plan, experiment.data
    name = f"{BEST}_member_{member}"
    module = experiment.make_module(new_network(experiment, member))
    draw_seed = seed_for(plan.seed, round_number, f"member/{member}")
    data.start_round(pool, round_number, plan.steps_per_round, draw_seed)
    title = f"round {round_number}/{plan.rounds} · member {member}/{experiment.source.n_members}"
    trainer = round_trainer(experiment, round_number, len(pool.labelled), name, title)
    torch.manual_seed(seed_for(plan.seed, round_number, f"training/{member}"))
    trainer.fit(module, datamodule=data)
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
        load_weights(network, experiment.round_folder(round_number - 1) / f"{name}.ckpt")
    return network


def round_trainer(
    experiment: Experiment,
    round_number: int,
    n_labelled: int,
    checkpoint: str,
    title: str,
    *,
    n_steps: int | None = None,
    logger: Logger | bool = False,
    callbacks: Sequence[Callback] = (),
) -> pl.Trainer:
    """A fresh trainer for one network of a round.

    Args:
        experiment: the parts.
        round_number: the round.
        n_labelled: the round's labelled volumes.
        checkpoint: the weights of the best validation Dice are kept under this name.
        title: for the progress bar.
        n_steps: optimiser steps; None for the plan's.
        logger: of the round.
        callbacks: besides those that checkpoint and show progress.
    """
    plan = experiment.plan
    n_steps = plan.steps_per_round if n_steps is None else n_steps
    interval = plan.val_interval_steps(n_labelled, experiment.data.batch_size)
    best = ModelCheckpoint(
        experiment.round_folder(round_number),
        checkpoint,
        monitor=MONITOR,
        mode="max",
        save_weights_only=True,
        enable_version_counter=False,
    )
    trainer: pl.Trainer = experiment.make_trainer(
        max_steps=n_steps,
        val_check_interval=min(interval, n_steps),
        logger=logger,
        callbacks=[best, *callbacks, *progress_callbacks(title)],
    )
    return trainer


def best_score(trainer: pl.Trainer) -> float:
    """The best validation Dice that a trainer of ``round_trainer`` has seen."""
    callbacks = [c for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None) == MONITOR]
    (best,) = callbacks
    assert isinstance(best, ModelCheckpoint)
    return float("nan") if best.best_model_score is None else float(best.best_model_score)


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
        weights = torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"]
        network.load_state_dict(
            {k.removeprefix("network."): v for k, v in weights.items() if k.startswith("network.")}
        )
    except Exception as error:  # torch.load lets pickle, zip and runtime errors through
        raise DataError(f"cannot load the weights in {checkpoint}: {error}") from error
