"""The state before the first round: which cases are labelled at the start."""

from __future__ import annotations

from alseg.active.acquisition_callback import query_rows
from alseg.active.experiment import Experiment
from alseg.active.initial_pool_from_images import initial_cases
from alseg.active.initial_pool_from_proxy import proxy_start
from alseg.core.errors import ConfigError
from alseg.core.pool import Pool
from alseg.core.seeding import seed_for
from alseg.core.units import whole
from alseg.data.headers import check_label_header
from alseg.oracles.base import annotated
from alseg.run.state import RunState


def initial_state(experiment: Experiment) -> RunState:
    """The state before the first round.

    Raises:
        AlsegError: as ``initial_pool``, or if a label of the initial pool is broken.
    """
    pool = initial_pool(experiment)
    query = whole(pool.labelled)
    answer = annotated(experiment.oracle, query)
    for case_id, label in answer.by_case.items():
        check_label_header(experiment.data.cache.task.cases[case_id], label)
    costs = {case_id: experiment.cost(path) for case_id, path in answer.by_case.items()}
    return RunState(
        pool=pool,
        config_hash=experiment.config_hash,
        queries=query_rows(0, query, {}, costs),
    )


def initial_pool(experiment: Experiment) -> Pool:
    """The pool before the first round; it depends on the seed and the images, not on the strategy.

    Raises:
        AlsegError: if the initial pool is larger than the training set, or the proxy task cannot be
            trained.
    """
    data, plan = experiment.data, experiment.plan
    training = data.splits.training
    if experiment.strategy.full_data:
        return Pool.start(training, sorted(training))
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
        seed = seed_for(plan.seed, 0, "initial_pool")
        initial = initial_cases(plan.start, data.cache, training, plan.initial, seed)
    initial = data.splits.with_all_parts(initial, seed_for(plan.seed, 0, "initial_pool/parts"))
    return Pool.start(training, initial)
