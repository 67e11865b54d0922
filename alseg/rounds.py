"""The round loop: train, test, score, acquire, repeat."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from monai.inferers import Inferer
from pytorch_lightning.callbacks import ModelCheckpoint

from alseg.callbacks.acquisition import Acquisition
from alseg.callbacks.progress import duration, progress_callbacks
from alseg.callbacks.query_pictures import QueryPictures
from alseg.cold_start import STARTS
from alseg.costs import AnnotationCost
from alseg.data.datamodule import PoolDataModule
from alseg.data.oracle import Oracle
from alseg.distributed import rank
from alseg.errors import ConfigError, DataError, check_whole_number
from alseg.evaluation import CaseDice
from alseg.models.segmentation import Scoring, SegmentationModule
from alseg.models.uncertainty import UncertaintySource
from alseg.pictures import draw_learning_curve
from alseg.pool import Pool
from alseg.seeding import seed_for
from alseg.state import RunState, write_atomically
from alseg.strategies.strategy import Strategy
from alseg.tracking import Tracker

log = logging.getLogger(__name__)

ROUND_STARTS = ("scratch", "continue", "continue_last")
INTERVAL_UNITS = ("steps", "epochs")
BEST, LAST = "best", "last"  # names of a round's checkpoints


@dataclass(frozen=True)
class Plan:
    """The numbers of an experiment.

    Attributes:
        initial: labelled volumes in the first round.
        query_size: volumes acquired after each round but the last.
        rounds: number of rounds.
        steps_per_round: optimiser steps in each round.
        val_interval: steps, or passes over the labelled volumes, between two validations.
        val_interval_unit: ``steps`` or ``epochs``.
        round_start: the weights a round starts from: ``scratch`` (a new network), ``continue``
            (the previous round's best by validation, as in the tutorial) or ``continue_last`` (the
            previous round's last). The optimiser starts anew in each round.
        seed: the run's seed.
        start: how the initial volumes are chosen, ``random`` or ``diverse``.
        budget: no more queries once the labelled volumes cost that much, in units of ``cost``; the
            last query may exceed it, as a cost is known after annotation. None for no limit.

    Raises:
        ConfigError: if a number is out of range.
    """

    initial: int
    query_size: int
    rounds: int
    steps_per_round: int
    val_interval: int
    val_interval_unit: str
    round_start: str
    seed: int
    start: str = "random"
    budget: float | None = None

    def __post_init__(self) -> None:
        for name, number in (
            ("pool.initial", self.initial),
            ("pool.query_size", self.query_size),
            ("pool.rounds", self.rounds),
            ("steps_per_round", self.steps_per_round),
            ("val_interval", self.val_interval),
        ):
            check_whole_number(name, number, at_least=1)
        check_whole_number("seed", self.seed, at_least=0)
        for name, value, allowed in (
            ("round_start", self.round_start, ROUND_STARTS),
            ("val_interval_unit", self.val_interval_unit, INTERVAL_UNITS),
            ("pool.start", self.start, STARTS),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")
        if self.budget is not None and not (
            type(self.budget) in (int, float) and 0 < self.budget < math.inf
        ):
            raise ConfigError(
                f"pool.budget is {self.budget!r}; it must be null or a number above 0"
            )

    def val_interval_steps(self, n_labelled: int, batch_size: int) -> int:
        """Steps between two validations, at most the steps of a round."""
        interval = self.val_interval
        if self.val_interval_unit == "epochs":
            interval *= -(-n_labelled // batch_size)
        return min(interval, self.steps_per_round)


@dataclass(frozen=True)
class Experiment:
    """The parts that the rounds work with.

    Attributes:
        plan: the numbers.
        folder: the run folder; it exists.
        strategy: chooses the queries.
        source: makes the passes that the strategy's statistics are taken from.
        scoring_inferer: runs a network over the windows of a volume while scoring.
        cost: of annotating a case.
        data: serves the loaders.
        oracle: reveals labels.
        make_network: builds an untrained network.
        make_module: wraps a network into a LightningModule.
        make_trainer: builds a Lightning trainer from its per-round settings.
        tracker: records the run.
        settings: the run's settings, flat, for the record.
        tags: what runs are grouped by, for the record.
        n_pictures: queries to draw a round.
        save_maps: whether to write NIfTI maps of the queries.
    """

    plan: Plan
    folder: Path
    strategy: Strategy
    source: UncertaintySource
    scoring_inferer: Inferer
    cost: AnnotationCost
    data: PoolDataModule
    oracle: Oracle
    make_network: Callable[[], torch.nn.Module]
    make_module: Callable[[torch.nn.Module], SegmentationModule]
    make_trainer: Callable[..., pl.Trainer]
    tracker: Tracker
    settings: Mapping[str, Any]
    tags: Mapping[str, str]
    n_pictures: int
    save_maps: bool


def prepare(experiment: Experiment, pool: Pool) -> None:
    """Reveal the labels that may be read and preprocess what the first rounds need.

    Raises:
        DataError: naming the first file that cannot be used.
    """
    data = experiment.data
    annotated = (*data.splits.validation, *data.splits.test, *pool.labelled)
    data.reveal(experiment.oracle.annotate(annotated))
    scored = pool.unlabelled if experiment.strategy.needs_prediction else ()
    data.prepare((*annotated, *scored))


def run_rounds(experiment: Experiment, state: RunState) -> RunState:
    """Run the rounds that are left, saving the state after each one.

    Ends early, with a line that says so, when the pool has run dry.

    Args:
        experiment: the parts.
        state: where to start, as ``RunState.load`` gives it or with no finished round; its pool
            has been prepared.

    Returns:
        The state after the last round.
    """
    tracker = experiment.tracker
    state = replace(
        state,
        tracking_run_id=tracker.open(
            experiment.folder, state.tracking_run_id, experiment.settings, experiment.tags
        ),
    )
    state.save(experiment.folder)
    status, reason = "FAILED", ""
    try:
        state = remaining_rounds(experiment, state)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns Ctrl-C into SystemExit
        status = "KILLED"
        log.info(f"interrupted; continue with resume={experiment.folder}")
        raise KeyboardInterrupt from stop
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise
    finally:
        tracker.close(status, reason)
    return state


def remaining_rounds(experiment: Experiment, state: RunState) -> RunState:
    """Run rounds until the plan is fulfilled or the pool has run dry."""
    plan = experiment.plan
    while state.finished_rounds < plan.rounds:
        n_volumes = len(state.pool.labelled) + len(state.pool.unlabelled)
        if state.history and state.history[-1]["labelled"] == n_volumes:
            log.info(
                f"the pool has run dry: all {n_volumes} volumes were labelled in round "
                f"{state.finished_rounds} of {plan.rounds}"
            )
            break
        if state.history and budget_is_spent(plan, state.history[-1]["cost"]):
            log.info(
                f"the budget is spent: {state.history[-1]['cost']:g} of {plan.budget:g} after "
                f"round {state.finished_rounds} of {plan.rounds}"
            )
            break
        started = time.monotonic()
        state = run_round(experiment, state)
        left = (plan.rounds - state.finished_rounds) * (time.monotonic() - started)
        row = state.history[-1]
        log.info(
            f"round {state.finished_rounds}/{plan.rounds} done · {row['labelled']} labelled · "
            f"test Dice {row['test_dice']:.3f} · about {duration(left)} left"
        )
    return state


def run_round(experiment: Experiment, state: RunState) -> RunState:
    """Run one round: fit, test the best weights, score the pool and acquire; save the state."""
    plan, data, strategy = experiment.plan, experiment.data, experiment.strategy
    pool, round_number = state.pool, state.finished_rounds + 1
    folder = round_folder(experiment.folder, round_number)
    title = f"round {round_number}/{plan.rounds} · {len(pool.labelled)} labelled"
    cost = math.fsum(row["cost"] for row in state.queries)
    is_last = round_number == plan.rounds or budget_is_spent(plan, cost) or not pool.unlabelled
    timings: dict[str, Any] = {"round": round_number}

    data.prepare(pool.labelled)
    module = experiment.make_module(start_network(experiment, round_number))
    data.start_round(pool, round_number, plan.steps_per_round)
    acquisition = Acquisition(
        strategy, experiment.oracle, plan.query_size, plan.seed, plan.rounds, experiment.cost
    )
    acquisition.start_round(pool, round_number)
    pictures = QueryPictures(
        acquisition,
        data.cache,
        module.dice.classes,
        experiment.n_pictures,
        experiment.save_maps,
        folder,
    )
    trainer = experiment.make_trainer(
        max_steps=plan.steps_per_round,
        val_check_interval=plan.val_interval_steps(len(pool.labelled), data.batch_size),
        logger=experiment.tracker.round_logger(round_number, len(pool.labelled)),
        callbacks=[
            best_checkpoint(folder, BEST),
            acquisition,
            pictures,
            *progress_callbacks(title),
        ],
    )
    # Dropout in training draws from the global generator; all else has generators of its own.
    # Devices see different draws, and drop different units.
    purpose = f"training/{rank()}" if rank() else "training"
    torch.manual_seed(seed_for(plan.seed, round_number, purpose))
    members: tuple[torch.nn.Module, ...] = ()
    with timed(timings, "training"):
        trainer.fit(module, datamodule=data)
        trainer.save_checkpoint(folder / f"{LAST}.ckpt", weights_only=True)
        if strategy.needs_passes and not is_last:
            members = tuple(
                train_member(experiment, pool, round_number, member)
                for member in range(2, experiment.source.n_members + 1)
            )
    load_weights(module.network, folder / f"{BEST}.ckpt")

    metrics: dict[str, Any] = {"round": round_number, "labelled": len(pool.labelled), "cost": cost}
    with timed(timings, "evaluation"):
        cases = []
        for part, evaluate in (("val", trainer.validate), ("test", trainer.test)):
            evaluate(module, datamodule=data, verbose=False)
            metrics |= dice_columns(part, module.dice)
            cases.append(module.dice.table().assign(part=part))
    write_atomically(folder / "cases.csv", pd.concat(cases).to_csv(index=False))

    queries: tuple[dict[str, Any], ...] = ()
    with timed(timings, "scoring"):
        if not is_last:
            if strategy.needs_prediction:
                data.start_scoring(
                    reference=pool.labelled if strategy.features else (),
                    hidden_labels=hidden_labels(experiment, pool.unlabelled),
                )
                module.scoring = Scoring(
                    strategy,
                    experiment.source,
                    experiment.scoring_inferer,
                    plan.seed,
                    round_number,
                    members,
                )
                trainer.predict(module, datamodule=data, return_predictions=False)
            else:
                acquisition.acquire()
            acquired = acquisition.result()
            pool, queries = acquired.pool, acquired.queries
            data.reveal(acquired.labels)
            if acquired.scores:
                scores = pd.DataFrame(sorted(acquired.scores.items()), columns=["case_id", "score"])
                write_atomically(folder / "scores.csv", scores.to_csv(index=False))
            if acquired.features:
                features = pd.DataFrame.from_dict(dict(acquired.features), orient="index")
                table = features.rename_axis("case_id").sort_index().to_csv(float_format="%.6g")
                write_atomically(folder / "features.csv", table)
    seconds, timings["preprocessed_volumes"] = data.take_preprocessing()
    timings["preprocessing_seconds"] = round(seconds, 3)

    state = state.after_round(pool, metrics, queries, timings)
    state.save(experiment.folder)
    write_reports(experiment, state)
    experiment.tracker.log_round(
        {name: value for name, value in (metrics | timings).items() if name != "round"},
        metrics["labelled"],
    )
    return state


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
    folder, name = round_folder(experiment.folder, round_number), f"{BEST}_member_{member}"
    torch.manual_seed(seed_for(plan.seed, 0, f"network/{member}"))
    module = experiment.make_module(experiment.make_network())
    draw_seed = seed_for(plan.seed, round_number, f"member/{member}")
    data.start_round(pool, round_number, plan.steps_per_round, draw_seed)
    title = f"round {round_number}/{plan.rounds} · member {member}/{experiment.source.n_members}"
    trainer = experiment.make_trainer(
        max_steps=plan.steps_per_round,
        val_check_interval=plan.val_interval_steps(len(pool.labelled), data.batch_size),
        logger=False,
        callbacks=[best_checkpoint(folder, name), *progress_callbacks(title)],
    )
    torch.manual_seed(seed_for(plan.seed, round_number, f"training/{member}"))
    trainer.fit(module, datamodule=data)
    load_weights(module.network, folder / f"{name}.ckpt")
    return module.network.eval()


def best_checkpoint(folder: Path, name: str) -> ModelCheckpoint:
    """Keeps the weights of the best validation Dice as ``NAME.ckpt``."""
    return ModelCheckpoint(
        folder,
        name,
        monitor="val/dice",
        mode="max",
        save_weights_only=True,
        enable_version_counter=False,
    )


def start_network(experiment: Experiment, round_number: int) -> torch.nn.Module:
    """The network that a round starts from, by the plan's ``round_start``."""
    plan = experiment.plan
    # The same first weights in every round from scratch: rounds then differ by their data alone.
    torch.manual_seed(seed_for(plan.seed, 0, "network"))
    network = experiment.make_network()
    if plan.round_start != "scratch" and round_number > 1:
        name = BEST if plan.round_start == "continue" else LAST
        load_weights(network, round_folder(experiment.folder, round_number - 1) / f"{name}.ckpt")
    return network


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


def hidden_labels(experiment: Experiment, case_ids: Sequence[str]) -> Mapping[str, Path]:
    """Labels that nobody has annotated yet, for a strategy flagged with ``reads_labels`` alone."""
    return experiment.oracle.peek(case_ids) if experiment.strategy.reads_labels else {}


def budget_is_spent(plan: Plan, cost: float) -> bool:
    """Whether labelled volumes of this cost leave nothing for another query."""
    return plan.budget is not None and cost >= plan.budget


def round_folder(run_folder: Path, round_number: int) -> Path:
    """Where a round leaves its files; made if it is not there."""
    folder = run_folder / "rounds" / f"round_{round_number:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def dice_columns(part: str, dice: CaseDice) -> dict[str, float]:
    """``val_dice``, ``val_dice_liver``, ...: the columns of metrics.csv."""
    return {f"{part}_dice": dice.mean()} | {
        f"{part}_dice_{name}": value for name, value in dice.by_class().items()
    }


def metrics_table(state: RunState) -> pd.DataFrame:
    """metrics.csv: one row a round, Dice and seconds."""
    return pd.DataFrame(
        [row | seconds for row, seconds in zip(state.history, state.timings, strict=True)]
    )


def write_reports(experiment: Experiment, state: RunState) -> None:
    """Write metrics.csv, queries.csv and learning_curve.png from the state."""
    folder, name = experiment.folder, experiment.strategy.title
    write_atomically(folder / "metrics.csv", metrics_table(state).to_csv(index=False))
    write_atomically(folder / "queries.csv", pd.DataFrame(state.queries).to_csv(index=False))
    if rank() > 0:
        return
    draw_learning_curve(
        folder / "learning_curve.png",
        state.history,
        experiment.data.cache.task.foreground,
        f"{experiment.data.cache.task.name}: {name}, seed {experiment.plan.seed}",
    )


@contextmanager
def timed(timings: dict[str, Any], name: str) -> Iterator[None]:
    """Add the seconds of the block to ``timings`` as ``NAME_seconds``."""
    started = time.monotonic()
    yield
    timings[f"{name}_seconds"] = round(time.monotonic() - started, 3)
