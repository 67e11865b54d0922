"""A run that had ended goes on: its last round, which asked for nothing, asks now."""

from __future__ import annotations

import logging

from alseg.active.experiment import Experiment
from alseg.active.round import has_more, is_to_ask, round_candidates
from alseg.active.round_networks import fresh_network, n_networks, past_weights
from alseg.core.errors import ConfigError, DataError
from alseg.run.stages import Stages
from alseg.run.state import RunState
from alseg.strategies.selectors.candidates import progress
from alseg.training.fit import BEST, load_weights

log = logging.getLogger(__name__)


def reopened(experiment: Experiment, state: RunState) -> RunState:
    """The state in which a run goes on that had ended, with more rounds or a larger budget.

    Its last round was not followed by a query. If there is to be one by now, the run is taken back
    to before the end of that round, all of whose other stages are finished: the round asks, by the
    network that it has trained, and ends as it would have in a run that had never stopped there.

    Args:
        experiment: the parts, as they are to go on.
        state: of the run.

    Returns:
        The same state, if the run has not ended, or if nothing is to be asked for.

    Raises:
        ConfigError: if the round's network is not one of the experiment.
        DataError: naming the first image that cannot be used.
    """
    number, pool = state.finished_rounds, state.pool
    if not state.history or state.has_asked or not is_to_ask(experiment.plan, number, state.cost):
        return state
    if experiment.regions is not None:
        experiment.data.prepare(pool.incomplete)  # where regions lie depends on preprocessing
    if not has_more(experiment, pool, round_candidates(experiment, pool, number)):
        return state
    check_network(experiment, number)
    log.info(f"round {number} was the last one and made no query: it makes it now")
    timings = state.timings[-1]
    experiment.data.continue_preprocessing(
        timings["preprocessing_seconds"], timings["preprocessed_volumes"]
    )
    return state.before_last_round()


def check_network(experiment: Experiment, round_number: int) -> None:
    """Check that the network of a finished round is one that the experiment knows.

    A checkpoint that is damaged or missing is no matter: the round is then trained again.

    Raises:
        ConfigError: if it is not.
    """
    folder = experiment.round_folder(round_number)
    checkpoint = folder / f"{BEST}.ckpt"
    if "training" not in Stages(folder):
        return
    try:
        load_weights(fresh_network(experiment), checkpoint)
    except DataError as error:
        raise ConfigError(
            f"round {round_number} has yet to make its query, by the network in {checkpoint}, "
            "which is another one than model= and uncertainty= say now: resume with those of the "
            "run, or start another run"
        ) from error


def check_members(experiment: Experiment, state: RunState) -> None:
    """Check that each network of the next round has weights to continue from, if it continues.

    Args:
        experiment: the parts, as they are to go on.
        state: of the run, from which it goes on.

    Raises:
        ConfigError: if the round before has trained fewer networks.
    """
    number = state.finished_rounds + 1
    n = n_networks(experiment, asks=is_to_ask(experiment.plan, number, state.cost))
    for member in range(2, n + 1):
        past_weights(experiment, number, member)


def check_rounds(experiment: Experiment, state: RunState, rounds_before: int) -> None:
    """Check that a run may go on with another number of rounds; say what that leaves different.

    Args:
        experiment: the parts, as they are to go on.
        state: of the run.
        rounds_before: ``pool.rounds`` so far.

    Raises:
        ConfigError: if it has finished more, or its only round has trained for the steps of all.
    """
    strategy, rounds = experiment.strategy, experiment.plan.rounds
    if rounds == rounds_before:
        return
    if rounds < state.finished_rounds:
        raise ConfigError(
            f"pool.rounds: {rounds_before} -> {rounds}: the run has finished "
            f"{state.finished_rounds} rounds, which stay; give pool.rounds={state.finished_rounds} "
            "to end it there, or a larger number"
        )
    if strategy.full_data and state.history and experiment.plan.round_start != "scratch":
        raise ConfigError(
            f"strategy {strategy.name} has trained its only round for the steps of {rounds_before} "
            f"rounds, as round_start={experiment.plan.round_start} asks for: start another run "
            f"with pool.rounds={rounds}"
        )
    asked = {row["round"] for row in state.queries} - {0}
    if strategy.has_schedule and any(
        progress(number, rounds) != progress(number, rounds_before) for number in asked
    ):
        log.warning(
            f"strategy {strategy.name} follows a schedule over pool.rounds: the queries up to "
            f"round {max(asked)} were made as in a run of {rounds_before} rounds, and the results "
            f"will not be those of a run that had {rounds} from the beginning"
        )
