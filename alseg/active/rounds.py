"""The round loop: train, test, score, acquire, repeat."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch

from alseg.active.acquisition import Acquired, Acquisition, candidate_cases
from alseg.active.experiment import Experiment
from alseg.active.plan import Plan
from alseg.active.query_pictures import QueryPictures
from alseg.active.reports import write_reports
from alseg.active.round_networks import round_training, start_network, train_member
from alseg.active.second_stage import second_stage
from alseg.core.budget import area_under_budget_curve
from alseg.core.pool import Pool
from alseg.core.seeding import seed_for
from alseg.data.datamodule import PoolDataModule
from alseg.run.score_journal import ScoreFile
from alseg.run.stages import Stages
from alseg.run.state import RunState
from alseg.scoring.racing import Heats
from alseg.scoring.scorer import Scoring
from alseg.scoring.sources import race_for
from alseg.strategies.strategy import CaseScore
from alseg.system.console import duration
from alseg.system.distributed import rank, wait_for_all
from alseg.system.files import checksum_of, clean_temporaries, write_atomically
from alseg.system.interruption import Interrupted, interruption
from alseg.tracking.tracker import metric_name
from alseg.training.fit import BEST, FIRST_STAGE, LAST, checkpoints, load_weights, spanning
from alseg.training.module import SegmentationModule

log = logging.getLogger(__name__)

FINE_TUNING = "training_second_stage"  # the stage of a round's semi-supervised fine-tuning
TRAINED = ("training", "member_")  # how the stages begin that train a network
EVALUATED = ("cases.csv", "calibration.csv")  # what an evaluation leaves


def prepare(experiment: Experiment, state: RunState) -> None:
    """Reveal the labels that may be read and preprocess what the next round needs.

    Raises:
        DataError: naming the first file that cannot be used.
    """
    data, pool = experiment.data, state.pool
    annotated = (*data.splits.validation, *data.splits.test, *pool.labelled)
    data.reveal(experiment.oracle.annotate(annotated))
    scored: tuple[str, ...] = ()
    if experiment.strategy.needs_prediction:
        scored = round_candidates(experiment, pool, state.finished_rounds + 1)
    data.prepare((*annotated, *scored))
    data.check_foreground()


def round_candidates(experiment: Experiment, pool: Pool, round_number: int) -> tuple[str, ...]:
    """The cases that a round chooses its query from."""
    plan = experiment.plan
    selectable = (*pool.unlabelled, *(pool.labelled if plan.repeat_uncertain else ()))
    return candidate_cases(selectable, plan.candidates, plan.seed, round_number)


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
    if state.hardware not in ("", experiment.hardware):
        log.warning(
            f"resumed on {experiment.hardware}, after {state.hardware}: results are as valid, but "
            "no longer bit-identical to those of an uninterrupted run"
        )
    state = replace(state, hardware=experiment.hardware)
    status, reason = "FAILED", ""
    try:
        with interruption.waits():  # a run that a store has been told of is noted here
            run_id = tracker.open(
                experiment.folder, state.tracking_run_id, experiment.settings, experiment.tags
            )
            state = replace(state, tracking_run_id=run_id)
            state.save(experiment.folder)
        if state.history:
            publish(experiment, state)  # an earlier process may have been killed before it did
        with experiment.data.deaths_told():
            state = remaining_rounds(experiment, state)
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise
    finally:
        tracker.close(status, reason)
    return state


def remaining_rounds(experiment: Experiment, state: RunState) -> RunState:
    """Run rounds until the plan is fulfilled, the budget is spent or the pool has run dry."""
    plan = experiment.plan
    while end_of_rounds(plan, state) is None:
        started = time.monotonic()
        state = run_round(experiment, state)
        left = (plan.rounds - state.finished_rounds) * (time.monotonic() - started)
        row = state.history[-1]
        log.info(
            f"round {state.finished_rounds}/{plan.rounds} done · {row['labelled']} labelled · "
            f"test Dice {row['test_dice']:.3f}"
            + (f" · about {duration(left)} left" if end_of_rounds(plan, state) is None else "")
        )
    if reason := end_of_rounds(plan, state):
        log.info(reason)
    return state


def end_of_rounds(plan: Plan, state: RunState) -> str | None:
    """Why no round is left: empty if the plan is fulfilled; None if there is another round."""
    if state.finished_rounds >= plan.rounds:
        return ""
    if not state.history:
        return None
    row, n_volumes = state.history[-1], len(state.pool.labelled) + len(state.pool.unlabelled)
    if row["labelled"] == n_volumes:
        return (
            f"the pool has run dry: all {n_volumes} volumes were labelled in round "
            f"{state.finished_rounds} of {plan.rounds}"
        )
    if budget_is_spent(plan, row["cost"]):
        return (
            f"the budget is spent: {row['cost']:g} of {plan.budget:g} after round "
            f"{state.finished_rounds} of {plan.rounds}"
        )
    return None


def publish(experiment: Experiment, state: RunState) -> None:
    """Write the reports of the finished rounds and record those that the tracking store misses."""
    write_reports(experiment, state)
    labelled, test_dice = state.learning_curve("test_dice")
    rounds = zip(state.history, state.timings, strict=True)
    for n_rounds, (row, seconds) in enumerate(rounds, start=1):
        area = area_under_budget_curve(labelled[:n_rounds], test_dice[:n_rounds])
        columns = row | seconds | {"area": area}
        del columns["round"]
        metrics = {metric_name(column): value for column, value in columns.items()}
        experiment.tracker.log_round(metrics, row["labelled"])


def run_round(experiment: Experiment, state: RunState) -> RunState:
    """Run one round: fit, test the best weights, score the pool and acquire; save the state.

    Stages that an earlier process has finished are not run again.
    """
    plan, data, strategy = experiment.plan, experiment.data, experiment.strategy
    pool, round_number = state.pool, state.finished_rounds + 1
    folder = experiment.round_folder(round_number)
    stages = sound_stages(folder)
    cost = math.fsum(row["cost"] for row in state.queries)
    is_last = round_number == plan.rounds or budget_is_spent(plan, cost) or not pool.unlabelled
    candidates = round_candidates(experiment, pool, round_number)
    timings: dict[str, Any] = {"round": round_number}

    scored = candidates if strategy.needs_prediction and not is_last else ()
    data.prepare((*pool.labelled, *scored))
    # without unlabelled volumes all steps are supervised
    semi_supervised = experiment.semi_supervised if pool.unlabelled else None
    best, n_steps = BEST, experiment.steps_per_round
    if semi_supervised is not None:
        best, n_steps = FIRST_STAGE, n_steps - semi_supervised.steps(n_steps)
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
    acquisition.start_round(pool, round_number, candidates)
    pictures = QueryPictures(
        acquisition,
        data.cache,
        module.dice.classes,
        experiment.n_pictures,
        experiment.save_maps,
        folder,
    )
    training = round_training(
        experiment,
        round_number,
        len(pool.labelled),
        best,
        f"round {round_number}/{plan.rounds} · {len(pool.labelled)} labelled",
        n_steps=n_steps,
        loggers=experiment.tracker.round_loggers(round_number, len(pool.labelled), folder),
        callbacks=(acquisition, pictures),
    )
    trainer = training.trainer
    if "training" not in stages:
        # Dropout in training draws from the global generator; all else has generators of its own.
        # Devices see different draws, and drop different units.
        purpose = f"training/{rank()}" if rank() else "training"
        with interruption.waits():
            result = training.fit(module, data, seed_for(plan.seed, round_number, purpose))
            trainer.save_checkpoint(folder / f"{LAST}.ckpt", weights_only=True)
            files = (best,) if semi_supervised else (best, LAST)  # whose second stage leaves a last
            stages.finish("training", checkpoints(*files), **result)
    training.checkpoint.delete()
    if semi_supervised is not None and FINE_TUNING not in stages:
        with interruption.waits():
            result = second_stage(
                experiment,
                semi_supervised,
                pool,
                round_number,
                module,
                stages["training"]["best_dice"],
            )
            stages.finish(FINE_TUNING, checkpoints(BEST, LAST), **result)
    members: tuple[torch.nn.Module, ...] = ()
    if strategy.needs_passes and not is_last:
        members = tuple(
            train_member(experiment, pool, round_number, member, stages)
            for member in range(2, experiment.source.n_members + 1)
        )
    trained = [stages[name] for name in stages if name.startswith(TRAINED)]
    timings["training_seconds"] = round(math.fsum(stage["seconds"] for stage in trained), 3)
    load_weights(module.network, folder / f"{BEST}.ckpt")
    if "evaluation" not in stages:
        started = time.monotonic()
        columns = evaluate(trainer, module, data, folder)
        seconds = round(time.monotonic() - started, 3)
        stages.finish("evaluation", EVALUATED, seconds=seconds, columns=columns)
    timings["evaluation_seconds"] = stages["evaluation"]["seconds"]
    metrics: dict[str, Any] = {
        "round": round_number,
        "labelled": len(pool.labelled),
        "cost": cost,
        "foreground_voxels": data.foreground_voxels(pool.labelled),
        "skipped_steps": sum(stage["skipped_steps"] for stage in trained),
        **stages["evaluation"]["columns"],
    }
    queries: tuple[dict[str, Any], ...] = ()
    scores = ScoreFile(folder, checksum_of(folder / f"{BEST}.ckpt"))
    with timed(timings, "scoring"):
        if not is_last:
            if strategy.needs_prediction:
                again = set(candidates)  # labelled volumes that may be repeated
                reference = [i for i in pool.labelled if strategy.features and i not in again]
                earlier = to_go_on_from(scores, (*candidates, *reference))
                done = {score.case_id for score in earlier}
                acquisition.go_on_from(earlier, scores)
                data.start_scoring(
                    candidates=[i for i in candidates if i not in done],
                    reference=[i for i in reference if i not in done],
                    hidden_labels=hidden_labels(experiment, candidates),
                )
                race = race_for(
                    experiment.source, strategy, plan.query_size, n_volumes=len(candidates)
                )
                if race is not None:
                    for score in earlier:
                        race.know(score)
                module.scoring = Scoring(
                    strategy,
                    experiment.source,
                    experiment.scoring_inferer,
                    plan.seed,
                    round_number,
                    members,
                    None if race is None else Heats(race),
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
    scores.delete()
    publish(experiment, state)
    return state


def sound_stages(folder: Path) -> Stages:
    """The finished stages of a round; none, and an empty folder, if its training is damaged."""
    clean_temporaries(folder)
    stages = Stages(folder)
    if stages.path.is_file() and "training" not in stages:
        log.warning(f"the round starts again: {folder}")
        start_again(folder)
        return Stages(folder)
    return stages


def start_again(folder: Path) -> None:
    """Empty the folder of a round."""
    wait_for_all()  # all have looked at it
    if rank() == 0:
        shutil.rmtree(folder)
        folder.mkdir()
    wait_for_all()


def to_go_on_from(file: ScoreFile, case_ids: Collection[str]) -> list[CaseScore]:
    """The scores that an interrupted pass over these cases has left, at least one case short.

    The prediction loop then has a volume to look at, and what follows it runs as always. A heat's
    volumes are there together or not at all: in one process they race as they would have without
    the interruption.
    """
    wanted = set(case_ids)
    groups = [group for group in file.read() if wanted.issuperset(s.case_id for s in group)]
    # several processes may have scored one case
    while len({s.case_id for group in groups for s in group}) == len(wanted):
        groups.pop()
    scores = list({s.case_id: s for group in groups for s in group}.values())
    if scores:
        log.info(f"{len(scores)} of {len(case_ids)} volumes were scored before the interruption")
    file.start(groups)
    return scores


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
    tables = (pd.concat(cases), module.calibration.table())
    for name, table in zip(EVALUATED, tables, strict=True):
        write_atomically(folder / name, table.to_csv(index=False))
    return columns


def write_scores(folder: Path, acquired: Acquired) -> None:
    """Write ``scores.csv`` and ``features.csv`` of a round, where its strategy has them."""
    ordered = sorted(acquired.scores, key=lambda s: s.case_id)
    rows = [(s.case_id, s.score, s.n_passes) for s in ordered if s.score is not None]
    if rows:
        scores = pd.DataFrame(rows, columns=["case_id", "score", "n_passes"])
        if acquired.similarities:
            scores["similarity"] = scores["case_id"].map(acquired.similarities)
        write_atomically(folder / "scores.csv", scores.to_csv(index=False))
    vectors = {s.case_id: s.features for s in ordered if s.features is not None}
    if vectors:
        features = pd.DataFrame.from_dict(vectors, orient="index").rename_axis("case_id")
        write_atomically(folder / "features.csv", features.to_csv(float_format="%.6g"))


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
