"""The round loop: train, test, score, acquire, repeat."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch

from alseg.callbacks.acquisition import Acquired, Acquisition
from alseg.callbacks.progress import duration
from alseg.callbacks.query_pictures import QueryPictures
from alseg.data.datamodule import PoolDataModule
from alseg.distributed import rank
from alseg.experiment import Experiment, Plan
from alseg.models.segmentation import Scoring, SegmentationModule
from alseg.pool import Pool
from alseg.report import write_reports
from alseg.second_stage import second_stage
from alseg.seeding import seed_for
from alseg.state import RunState, write_atomically
from alseg.training import (
    BEST,
    LAST,
    load_weights,
    round_trainer,
    spanning,
    start_network,
    train_member,
)

log = logging.getLogger(__name__)


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
    folder = experiment.round_folder(round_number)
    cost = math.fsum(row["cost"] for row in state.queries)
    is_last = round_number == plan.rounds or budget_is_spent(plan, cost) or not pool.unlabelled
    timings: dict[str, Any] = {"round": round_number}

    data.prepare(pool.labelled)
    metrics: dict[str, Any] = {
        "round": round_number,
        "labelled": len(pool.labelled),
        "cost": cost,
        "foreground_voxels": data.foreground_voxels(pool.labelled),
    }
    # without unlabelled volumes all steps are supervised
    semi_supervised = experiment.semi_supervised if pool.unlabelled else None
    n_steps = plan.steps_per_round
    if semi_supervised is not None:
        n_steps -= semi_supervised.steps(n_steps)
    module = spanning(experiment.make_module, n_steps)(start_network(experiment, round_number))
    data.start_round(pool, round_number, n_steps)
    acquisition = Acquisition(
        strategy,
        experiment.oracle,
        plan.query_size,
        plan.seed,
        plan.rounds,
        experiment.cost,
        experiment.similarity,
    )
    candidates = plan.candidates(pool)
    acquisition.start_round(pool, round_number, candidates)
    pictures = QueryPictures(
        acquisition,
        data.cache,
        module.dice.classes,
        experiment.n_pictures,
        experiment.save_maps,
        folder,
    )
    trainer = round_trainer(
        experiment,
        round_number,
        len(pool.labelled),
        BEST,
        f"round {round_number}/{plan.rounds} · {len(pool.labelled)} labelled",
        n_steps=n_steps,
        logger=experiment.tracker.round_logger(round_number, len(pool.labelled)),
        callbacks=(acquisition, pictures),
    )
    # Dropout in training draws from the global generator; all else has generators of its own.
    # Devices see different draws, and drop different units.
    purpose = f"training/{rank()}" if rank() else "training"
    torch.manual_seed(seed_for(plan.seed, round_number, purpose))
    members: tuple[torch.nn.Module, ...] = ()
    with timed(timings, "training"):
        trainer.fit(module, datamodule=data)
        if semi_supervised is not None:
            second_stage(experiment, semi_supervised, pool, round_number, module, trainer)
        trainer.save_checkpoint(folder / f"{LAST}.ckpt", weights_only=True)
        if strategy.needs_passes and not is_last:
            members = tuple(
                train_member(experiment, pool, round_number, member)
                for member in range(2, experiment.source.n_members + 1)
            )
    load_weights(module.network, folder / f"{BEST}.ckpt")
    with timed(timings, "evaluation"):
        metrics |= evaluate(trainer, module, data, folder)
    queries: tuple[dict[str, Any], ...] = ()
    with timed(timings, "scoring"):
        if not is_last:
            if strategy.needs_prediction:
                data.start_scoring(
                    candidates,
                    reference=pool.labelled if strategy.features else (),
                    hidden_labels=hidden_labels(experiment, candidates),
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
            write_scores(folder, acquired)
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


def evaluate(
    trainer: pl.Trainer, module: SegmentationModule, data: PoolDataModule, folder: Path
) -> dict[str, float]:
    """Evaluate the round's network on validation and test volumes.

    Returns:
        ``val_dice``, ``test_dice_liver``, ...: columns of metrics.csv. ``cases.csv`` (Dice of each
        case) and ``calibration.csv`` (of the test volumes) are left in the round's folder.
    """
    columns: dict[str, float] = {}
    cases = []
    for part, run in (("val", trainer.validate), ("test", trainer.test)):
        run(module, datamodule=data, verbose=False)
        columns |= {f"{part}_dice": module.dice.mean()}
        columns |= {f"{part}_dice_{name}": value for name, value in module.dice.by_class().items()}
        cases.append(module.dice.table().assign(part=part))
    write_atomically(folder / "cases.csv", pd.concat(cases).to_csv(index=False))
    write_atomically(folder / "calibration.csv", module.calibration.table().to_csv(index=False))
    return columns


def write_scores(folder: Path, acquired: Acquired) -> None:
    """Write ``scores.csv`` and ``features.csv`` of a round, where its strategy has them."""
    if acquired.scores:
        scores = pd.DataFrame(sorted(acquired.scores.items()), columns=["case_id", "score"])
        write_atomically(folder / "scores.csv", scores.to_csv(index=False))
    if acquired.features:
        features = pd.DataFrame.from_dict(dict(acquired.features), orient="index")
        table = features.rename_axis("case_id").sort_index().to_csv(float_format="%.6g")
        write_atomically(folder / "features.csv", table)


def hidden_labels(experiment: Experiment, case_ids: Sequence[str]) -> Mapping[str, Path]:
    """Labels that nobody has annotated yet, for a strategy flagged with ``reads_labels`` alone."""
    return experiment.oracle.peek(case_ids) if experiment.strategy.reads_labels else {}


def budget_is_spent(plan: Plan, cost: float) -> bool:
    """Whether labelled volumes of this cost leave nothing for another query."""
    return plan.budget is not None and cost >= plan.budget


@contextmanager
def timed(timings: dict[str, Any], name: str) -> Iterator[None]:
    """Add the seconds of the block to ``timings`` as ``NAME_seconds``."""
    started = time.monotonic()
    yield
    timings[f"{name}_seconds"] = round(time.monotonic() - started, 3)
