"""From a composed configuration to an experiment: instantiates the parts and tries them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alseg import __version__
from alseg.active.acquisition import query_rows
from alseg.active.experiment import Experiment
from alseg.active.initial_pool import initial_cases
from alseg.active.plan import Plan
from alseg.active.proxy import proxy_start
from alseg.active.pseudo_labels import SemiSupervised
from alseg.config.checks import (
    check_inferer,
    check_keys,
    check_network,
    check_positive,
    check_scores,
    check_training,
    check_transforms,
)
from alseg.config.composition import part
from alseg.config.settings import config_hash, flat
from alseg.core.errors import ConfigError, check_flag, check_part, check_text, check_whole_number
from alseg.core.pool import Pool
from alseg.core.seeding import seed_for
from alseg.data.cache import VolumeCache
from alseg.data.datamodule import PoolDataModule
from alseg.data.headers import check_headers
from alseg.data.similarity import LabelledSimilarity
from alseg.data.splits import Splits
from alseg.data.survey import warn
from alseg.data.task import Task
from alseg.networks.placement import place_dropout
from alseg.oracles.costs import cost_named
from alseg.oracles.simulated import SimulatedOracle
from alseg.run.state import RunState
from alseg.scoring.sources import UncertaintySource, check_savings
from alseg.scoring.svgd import SVGD
from alseg.strategies.strategy import Strategy
from alseg.system.distributed import rank
from alseg.system.secrets import kept_settings
from alseg.system.text import literal
from alseg.tracking.tracker import Trackers
from alseg.training.module import SegmentationModule
from alseg.training.svgd import SteinModule
from alseg.training.trainers import check_accelerator, check_devices, hardware_of, workers_for


def build(config: DictConfig, folder: Path) -> Experiment:
    """Instantiate the parts of an experiment; check what can be checked.

    Args:
        config: the composed configuration.
        folder: the run folder.

    Raises:
        AlsegError: naming the file or the setting that cannot be used.
    """
    for name in ("output_dir", "cache_dir", "experiment_name"):
        check_text(name, config[name])
    settings = [field.name for field in fields(Plan)]
    check_keys("pool", config.pool, [name for name in settings if name not in config])
    plan = Plan(
        **config.pool,
        steps_per_round=config.steps_per_round,
        val_interval=config.val_interval,
        val_interval_unit=config.val_interval_unit,
        round_start=config.round_start,
        seed=config.seed,
    )
    strategy: Strategy = part(config.strategy)
    check_part("strategy", strategy, Strategy)
    source: UncertaintySource = part(config.uncertainty)
    cost = cost_named(config.cost)
    make_trainer = part(config.trainer)
    check_accelerator(config.trainer.accelerator)
    check_devices(config.trainer)
    # refuses bad settings now, not later
    hardware = hardware_of(make_trainer(logger=False, enable_checkpointing=False))
    check_flag("save_maps", config.save_maps)
    check_whole_number("data.batch_size", config.data.batch_size, at_least=1)
    check_whole_number("pictures", config.pictures, at_least=0)
    task: Task = part(config.data.task)
    check_part("data.task", task, Task)
    splits: Splits = part(config.data.splits, case_ids=list(task.cases))
    check_part("data.splits", splits, Splits)
    headers = check_headers(task, (*splits.validation, *splits.test), labels=True)
    headers |= check_headers(task, splits.training, labels=False)

    shape = len(task.channels), config.data.patch_size
    plain_network = partial(
        part,
        config.model.network,
        in_channels=len(task.channels),
        out_channels=len(task.classes),
    )
    network = plain_network()
    check_network(network, *shape)
    make_network = partial(
        network_with_dropout, plain_network, config.model.get("dropout_placement", "all"), *shape
    )
    if strategy.needs_prediction:
        check_scores(strategy, len(task.classes))
    semi_supervised: SemiSupervised | None = part(config.semi_supervised)
    network = make_network()
    if strategy.needs_passes or semi_supervised is not None:
        source.check(network)
    if "learning_rate" in config.training:
        check_positive("training.learning_rate", config.training.learning_rate)
    loss, optimizer = part(config.training.loss), part(config.training.optimizer)
    schedule = part(config.training.schedule)
    check_training(loss, optimizer, schedule, len(task.classes), plan.steps_per_round)
    if semi_supervised is not None and (
        plan.steps_per_round < 2 or "lr" not in getattr(optimizer, "keywords", {})
    ):
        raise ConfigError(
            f"semi_supervised needs at least two steps_per_round, here {plan.steps_per_round}, "
            "and a training.optimizer with lr"
        )
    inferer, scoring_inferer = part(config.data.inferer), part(config.data.scoring_inferer)
    check_inferer("data.inferer", inferer)
    check_inferer("data.scoring_inferer", scoring_inferer)
    check_savings(source, strategy, scoring_inferer, plan.query_size)
    preprocess, augment = part(config.data.preprocess), part(config.data.augment)
    check_transforms("data.preprocess", preprocess)
    check_transforms("data.augment", augment)
    tracker = Trackers(part(config.tracking) if rank() == 0 else {})
    data = PoolDataModule(
        cache=VolumeCache(
            task,
            preprocess,
            fingerprint=OmegaConf.to_yaml(config.data.preprocess, resolve=True),
            folder=config.cache_dir,
        ),
        splits=splits,
        augment=augment,
        batch_size=config.data.batch_size,
        num_workers=workers_for(config.data.num_workers),
        base_seed=plan.seed,
    )
    if rank() == 0:
        warn(data.cache, headers)
    joint_loss = source.loss if isinstance(source, SVGD) else None
    return Experiment(
        plan=plan,
        folder=folder,
        strategy=strategy,
        source=source,
        scoring_inferer=scoring_inferer,
        cost=cost,
        data=data,
        oracle=SimulatedOracle(task),
        make_network=make_network,
        make_module=partial(
            SteinModule if isinstance(source, SVGD) else SegmentationModule,
            loss=joint_loss or loss,
            optimizer=optimizer,
            schedule=schedule,
            inferer=inferer,
            classes=task.foreground,
        ),
        make_trainer=make_trainer,
        tracker=tracker,
        settings=flat(kept_settings(config)),
        tags=run_tags(config, task, strategy),
        checkpoint_every_n_steps=config.checkpoint_every_n_steps,
        on_nonfinite=config.on_nonfinite,
        hardware=hardware,
        n_pictures=config.pictures,
        save_maps=config.save_maps,
        semi_supervised=semi_supervised,
        similarity=(
            None
            if strategy.similarity is None
            else LabelledSimilarity(data.cache, strategy.similarity)
        ),
    )


def network_with_dropout(
    make_network: Callable[[], Any], placement: str, n_channels: int, patch_size: Sequence[int]
) -> Any:
    """Build a network whose dropout acts where it is wanted."""
    network = make_network()
    place_dropout(network, placement, n_channels, patch_size)
    return network


def first_state(config: DictConfig, experiment: Experiment) -> RunState:
    """The state before the first round."""
    pool = initial_pool(config, experiment)
    labels = experiment.oracle.annotate(pool.labelled)
    costs = {case_id: experiment.cost(path) for case_id, path in labels.items()}
    return RunState(
        pool=pool,
        config_hash=config_hash(config),
        queries=query_rows(0, pool.labelled, {}, costs),
    )


def initial_pool(config: DictConfig, experiment: Experiment) -> Pool:
    """The pool before the first round; it depends on the seed and the images, not on the strategy.

    Raises:
        AlsegError: if the initial pool is larger than the training set, a label of it is broken, or
            the proxy task cannot be trained.
    """
    data, plan = experiment.data, experiment.plan
    splits, task = data.splits, data.cache.task
    if experiment.strategy.full_data:
        check_headers(task, splits.training, labels=True)
        return Pool.start(splits.training, sorted(splits.training))
    if plan.initial > len(splits.training):
        raise ConfigError(
            f"pool.initial is {plan.initial}, but the training split has {len(splits.training)} "
            "volumes"
        )
    seed = seed_for(plan.seed, 0, "initial_pool")
    if plan.start == "proxy":
        key = proxy_key(config, data.cache, splits.training)
        # the training's loss: a committee's own must not change the start
        loss = part(config.training.loss)
        initial = proxy_start(experiment, part(config.proxy), loss, plan.initial, key)
    else:
        if plan.start != "random":
            data.prepare(splits.training)
        initial = initial_cases(plan.start, data.cache, splits.training, plan.initial, seed)
    check_headers(task, initial, labels=True)
    return Pool.start(splits.training, initial)


def proxy_key(config: DictConfig, cache: VolumeCache, case_ids: Sequence[str]) -> str:
    """A hash of what the choice of the proxy task depends on."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    names = ("data", "model", "training", "proxy", "seed")
    images = {case_id: cache.key(cache.task.cases[case_id].images) for case_id in case_ids}
    chosen_from = {"images": images, "initial": config.pool.initial}
    return config_hash(
        OmegaConf.create(literal({name: content[name] for name in names} | chosen_from))
    )


def run_tags(config: DictConfig, task: Task, strategy: Strategy) -> dict[str, str]:
    """What runs are filtered and grouped by in the tracking store."""
    return {
        "data": task.name,
        "strategy": strategy.name,
        "seed": str(config.seed),
        "reads_labels": str(strategy.reads_labels).lower(),
        "alseg_version": __version__,
    }
