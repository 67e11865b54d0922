"""The state before the first round: which cases are labelled at the start."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from alseg.active.acquisition_callback import query_rows
from alseg.active.experiment import Experiment
from alseg.active.initial_pool_from_images import initial_cases
from alseg.active.initial_pool_from_proxy import proxy_start
from alseg.active.region_units import RegionUnits
from alseg.active.round import budget_is_spent
from alseg.core.errors import ConfigError, NotAnnotatedYetError
from alseg.core.pool import Pool
from alseg.core.seeding import seed_for
from alseg.data.headers import check_label_header
from alseg.data.splits import Splits
from alseg.data.task import Task
from alseg.oracles.base import annotated
from alseg.run.folder import INITIAL_REQUEST
from alseg.run.requests import read_request
from alseg.run.state import RunState

log = logging.getLogger(__name__)


def initial_state(experiment: Experiment) -> RunState:
    """The state before the first round.

    Raises:
        NotAnnotatedYetError: if somebody has to annotate the initial pool first.
        AlsegError: as ``initial_pool``, or if a label of the initial pool is broken.
    """
    oracle, training = experiment.oracle, experiment.data.splits.training
    earlier = read_request(experiment.folder, INITIAL_REQUEST)  # by another process
    query = initial_pool(experiment).units if earlier is None else earlier.query
    oracle.request(INITIAL_REQUEST, query, {})
    answer = annotated(oracle, query).with_unrequested(training)
    check_parts(experiment.data.splits, [unit.case_id for unit in answer.labels])
    pool = Pool.start(training, ())
    for unit, label in answer.labels.items():
        check_label_header(experiment.data.cache.task.cases[unit.case_id], label)
    state = RunState(
        pool=pool.after(answer),
        config_hash=experiment.config_hash,
        queries=query_rows(0, answer.labels, {}, experiment.answer_costs(answer, pool)),
    )
    warn_of_budget(experiment, state.cost)
    return state


def warn_of_budget(experiment: Experiment, cost: float) -> None:
    """Say before any training that the initial labels leave nothing of the budget."""
    plan = experiment.plan
    if plan.rounds > 1 and budget_is_spent(plan, cost) and not experiment.strategy.full_data:
        log.warning(
            f"the initial labels cost {cost:g} (cost={experiment.cost_unit}), and pool.budget is "
            f"{plan.budget:g}: there will be one round and no query; raise the budget, or start "
            "with a smaller pool.initial"
        )


def initial_pool(experiment: Experiment) -> Pool:
    """The pool before the first round; it depends on its seed and the images, not on the strategy.

    Raises:
        AlsegError: if the initial pool is larger than the training set, or the proxy task cannot be
            trained.
    """
    data, plan = experiment.data, experiment.plan
    training = data.splits.training
    if experiment.strategy.full_data:
        return Pool.start(training, sorted(training))
    if plan.start == "labelled":
        return Pool.start(training, labelled_cases(data.cache.task, training))
    if experiment.regions is not None:
        return random_regions(experiment, experiment.regions)
    if plan.initial > len(training):
        raise ConfigError(
            f"pool.initial is {plan.initial}, but the training split has {len(training)} volumes"
        )
    needed = data.splits.fewest_annotated
    if plan.initial < needed:
        raise ConfigError(
            f"pool.initial is {plan.initial}; this split takes at least {needed} volumes, one to "
            "train and one to validate with"
        )
    if experiment.proxy is not None:
        initial = proxy_start(experiment, experiment.proxy)
    else:
        if plan.start != "random":
            data.prepare(training)
        seed = seed_for(plan.seed_of_labels, 0, "initial_pool")
        groups = data.splits.groups
        initial = initial_cases(plan.start, data.cache, training, plan.initial, seed, groups)
    seed = seed_for(plan.seed_of_labels, 0, "initial_pool/parts")
    initial = data.splits.with_all_parts(initial, seed)
    return Pool.start(training, initial)


def check_parts(splits: Splits, annotated: Sequence[str]) -> None:
    """Check that a first round has a case to train and one to validate with.

    Raises:
        NotAnnotatedYetError: if it has not.
    """
    if missing := splits.lacks(annotated):
        raise NotAnnotatedYetError(
            annotated,
            f"{len(annotated)} volumes are annotated, and none of them is one to {missing} with: "
            "annotate more of those that were asked for, or start with a larger pool.initial.",
        )


def labelled_cases(task: Task, training: Sequence[str]) -> tuple[str, ...]:
    """The training cases that have a label in the data set, sorted.

    Raises:
        ConfigError: if there are none.
    """
    labelled = tuple(sorted(set(training) & set(task.labelled)))
    if not labelled:
        raise ConfigError(
            f"pool.start=labelled begins with the cases that have a label, and of the "
            f"{len(training)} volumes to train on in {task.root} none has one; random, "
            "typical and diverse need no label"
        )
    return labelled


def random_regions(experiment: Experiment, regions: RegionUnits) -> Pool:
    """A pool of random regions.

    Raises:
        ConfigError: if there is no room for as many as are wanted.
    """
    data, n_wanted = experiment.data, experiment.plan.initial
    data.prepare(data.splits.training)
    nothing = Pool.start(data.splits.training, ())
    rng = np.random.default_rng(seed_for(experiment.plan.seed_of_labels, 0, "initial_pool"))
    units = regions.draw(nothing, nothing.unlabelled, n_wanted, rng)
    if len(units) < n_wanted:
        raise ConfigError(
            f"pool.initial is {n_wanted}, but only {len(units)} regions, drawn one after another, "
            f"found room in the {len(nothing.unlabelled)} training volumes"
        )
    cases = dict.fromkeys(unit.case_id for unit in units)
    return replace(nothing.acquire(list(cases)), regions=units)
