"""The round loop: train, test, score, acquire, repeat."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from alseg.active.acquisition_callback import Acquired
from alseg.active.experiment import Experiment
from alseg.active.plan import Plan
from alseg.active.reports import write_reports
from alseg.active.round import Round, budget_is_spent, round_candidates
from alseg.active.round_acquisition import acquire
from alseg.active.round_evaluation import evaluate
from alseg.active.round_training import TRAINED, train
from alseg.active.when_to_stop import advise
from alseg.core.errors import NotAnnotatedYetError
from alseg.core.units import whole
from alseg.data.annotation import as_annotations, revealed
from alseg.oracles.base import annotated
from alseg.run.stages import EVALUATION
from alseg.run.state import RunState
from alseg.system.console import duration
from alseg.system.interruption import Interrupted, interruption
from alseg.training.evaluation import ZERO

log = logging.getLogger(__name__)


def prepare(experiment: Experiment, state: RunState) -> None:
    """Reveal the labels that may be read and preprocess what the next round needs.

    Raises:
        DataError: naming the first file that cannot be used.
    """
    data, pool = experiment.data, state.pool
    evaluated = (*data.splits.validation, *data.splits.test)
    answer = annotated(experiment.oracle, (*whole(evaluated), *pool.units))
    data.reveal(revealed(answer, pool))
    scored: tuple[str, ...] = ()
    if experiment.regions is not None:
        scored = pool.incomplete  # where regions lie depends on preprocessing
    elif experiment.needs_prediction:
        scored = round_candidates(experiment, pool, state.finished_rounds + 1)
    data.prepare((*evaluated, *pool.labelled, *scored))
    if experiment.evaluation.absent != ZERO:
        data.check_foreground()


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
    if (n_networks := experiment.evaluation.networks) > 1:
        log.info(f"a round trains {n_networks} networks, and Dice is of their mean prediction")
    status, reason = "FAILED", ""
    try:
        with interruption.delayed():
            tracker.open(experiment.folder, experiment.settings, experiment.tags)
            state.save(experiment.folder)
        if state.history:
            publish(experiment, state)  # an earlier process may have been killed before it did
        with experiment.data.report_dead_workers():
            state = remaining_rounds(experiment, state)
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    except NotAnnotatedYetError:
        status = "SCHEDULED"  # it continues once the labels are there
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
        state = run_round(experiment, state)
        row, timings = state.history[-1], state.timings[-1]
        # of computing: how long people take to annotate is not in it
        seconds = math.fsum(timings[name] for name in timings if name.endswith("_seconds"))
        left = (plan.rounds - state.finished_rounds) * seconds
        log.info(
            f"round {state.finished_rounds}/{plan.rounds} done · {row['labelled']} labelled · "
            f"{state.measure.title} {row[state.measure.column]:.3f}"
            + (f" · about {duration(left)} left" if end_of_rounds(plan, state) is None else "")
        )
    if reason := end_of_rounds(plan, state):
        log.info(reason)
    return state


def end_of_rounds(plan: Plan, state: RunState) -> str | None:
    """Why no round is left: empty if the plan is fulfilled; None if there is another round.

    Each query is followed by a round that trains with it. So the round that none has followed is
    the last one, as long as ``reopened`` finds nothing that it could ask for.
    """
    if state.finished_rounds >= plan.rounds:
        return ""
    if state.has_asked or not state.history:
        return None
    pool, when = state.pool, f"round {state.finished_rounds} of {plan.rounds}"
    if not pool.incomplete:
        return f"the pool has run dry: all {len(pool.labelled)} volumes were labelled in {when}"
    if budget_is_spent(plan, state.cost):
        return f"the budget is spent: {state.cost:g} of {plan.budget:g} after {when}"
    return (
        "the pool has run dry: no volume had room for another region that can be annotated "
        f"after {when}"
    )


def publish(experiment: Experiment, state: RunState) -> None:
    """Write the reports of the finished rounds, and record them from there."""
    write_reports(experiment, state)
    experiment.tracker.log_rounds()


def run_round(experiment: Experiment, state: RunState) -> RunState:
    """Run one round: train, evaluate the best weights, advise, query; save the state.

    Stages that an earlier process has finished are not run again.
    """
    this_round = Round.after(experiment, state)
    prepare_round(this_round)
    trained = train(this_round)
    dice = evaluate(this_round, trained.trainer, trained.evaluated)
    so_far = labelled_so_far(this_round)  # before the query opens more of cases with regions
    advise(this_round, [*state.history, {**so_far, **dice}])
    started = time.monotonic()
    acquired = None if this_round.is_last else acquire(this_round, trained)
    seconds = time.monotonic() - started - (acquired.seconds if acquired else 0.0)
    return save(this_round, state, so_far, dice, acquired, seconds)


def prepare_round(this_round: Round) -> None:
    """Preprocess what the round reads, its candidates only if it looks at them."""
    scored = this_round.candidates if this_round.needs_prediction else ()
    data, judged = this_round.experiment.data, this_round.judged
    labelled, oracle = this_round.pool.labelled, this_round.experiment.oracle
    labels = oracle.labels_for_round(this_round.number, labelled)
    data.reveal(as_annotations(labels, this_round.pool))
    data.prepare((*labelled, *scored))
    absent_counts = this_round.experiment.evaluation.absent == ZERO
    if not absent_counts and not data.holds_foreground(judged):
        cases = "only case" if len(judged) == 1 else f"{len(judged)} cases"
        log.warning(
            f"no label of the {cases} that this round validates with holds foreground: "
            "its Dice is undefined, and the round keeps its last weights"
        )


def labelled_so_far(this_round: Round) -> dict[str, Any]:
    """The first columns of a row of metrics.csv: which round, and what has been labelled."""
    return {
        "round": this_round.number,
        "labelled": len(this_round.pool.units),
        "cost": this_round.cost,
        "foreground_voxels": this_round.experiment.data.foreground_voxels(this_round.pool.labelled),
    }


def save(
    this_round: Round,
    state: RunState,
    so_far: Mapping[str, Any],
    dice: Mapping[str, float],
    acquired: Acquired | None,
    scoring_seconds: float,
) -> RunState:
    """Save the state after a round, and report it.

    Args:
        this_round: the round, all of whose stages are finished.
        state: before it.
        so_far: columns of metrics.csv, of what it was trained with.
        dice: columns of metrics.csv, from its evaluation.
        acquired: what its query led to; None for the last round.
        scoring_seconds: how long that took.
    """
    experiment, pool, stages = this_round.experiment, this_round.pool, this_round.stages
    trained = [stages[name] for name in stages if name.startswith(TRAINED)]
    metrics = {
        **so_far,
        "skipped_steps": sum(stage["skipped_steps"] for stage in trained),
        **dice,
    }
    preprocessing_seconds, n_preprocessed = experiment.data.take_preprocessing()
    timings = {
        "round": this_round.number,
        "training_seconds": round(math.fsum(stage["seconds"] for stage in trained), 3),
        "evaluation_seconds": stages[EVALUATION]["seconds"],
        "scoring_seconds": round(scoring_seconds, 3),
        "preprocessed_volumes": n_preprocessed,
        "preprocessing_seconds": round(preprocessing_seconds, 3),
    }
    new_pool, queries = (pool, ()) if acquired is None else (acquired.pool, acquired.queries)
    state = state.after_round(new_pool, metrics, queries, timings)
    state.save(experiment.folder)
    this_round.score_file.delete()
    publish(experiment, state)
    return state
