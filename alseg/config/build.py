"""From a composed configuration to an experiment: instantiates the parts and tries them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from monai.inferers import Inferer
from omegaconf import DictConfig, OmegaConf

from alseg import __version__
from alseg.active.experiment import Experiment
from alseg.active.plan import Plan
from alseg.active.pseudo_labels import SemiSupervised
from alseg.config.checks import (
    check_crop_ratios,
    check_inferer,
    check_keys,
    check_losses,
    check_network,
    check_scores,
    check_training,
    check_transforms,
)
from alseg.config.composition import instantiate
from alseg.config.region_checks import check_regions
from alseg.config.settings import config_hash, flat
from alseg.core.counts import counted
from alseg.core.errors import (
    ConfigError,
    DataError,
    check_choice,
    check_flag,
    check_number,
    check_part,
    check_text,
    check_whole_number,
)
from alseg.data.cache import VolumeCache
from alseg.data.datamodule import PoolDataModule
from alseg.data.findings import listed
from alseg.data.folds import CrossValidation
from alseg.data.headers import check_headers, label_of
from alseg.data.region_sizes import region_sizes
from alseg.data.regions import UnitShape
from alseg.data.similarity import LabelledSimilarity
from alseg.data.splits import PARTS, Splits
from alseg.data.survey import warn
from alseg.data.task import Task
from alseg.data.volumes import read_header
from alseg.networks.dropout import drop_no_logits
from alseg.networks.dropout_placement import place_dropout
from alseg.oracles.base import Oracle
from alseg.oracles.costs import NAMES, AnnotationCost, Effort, cost_by
from alseg.strategies.strategy import Strategy
from alseg.system.distributed import rank
from alseg.system.secrets import kept_settings
from alseg.system.text import literal
from alseg.tracking.tracker import Trackers
from alseg.training.class_metrics import VoxelSize
from alseg.training.evaluation import Evaluation
from alseg.training.recipe import Recipe
from alseg.training.trainers import check_accelerator, check_devices, hardware_of, workers_for

log = logging.getLogger(__name__)


def build(config: DictConfig, folder: Path) -> Experiment:
    """Instantiate the parts of an experiment; check what can be checked.

    Args:
        config: the composed configuration.
        folder: the run folder.

    Raises:
        AlsegError: naming the file or the setting that cannot be used.
    """
    check_plain_settings(config)
    plan = build_plan(config)
    strategy, source = build_strategy(config), instantiate(config.uncertainty)
    make_trainer, hardware = build_trainer(config)
    task = build_task(config)
    effort, evaluation = build_effort(config), build_evaluation(config, task)
    oracle, cost = build_annotation(config, task, folder, strategy, effort)
    data = build_data(config, task, oracle)
    make_network = build_network(config, task)
    recipe, semi_supervised = build_training(config, plan, len(task.classes))
    cross_validation = build_cross_validation(config)
    check_units(plan, strategy, semi_supervised, oracle, data, cross_validation)
    check_validation(cross_validation, plan, data.splits, semi_supervised)
    check_distances(evaluation, task, data.splits, cross_validation)
    of_regions = plan.unit_shape.is_region
    check_losses(recipe.loss, source.loss, task, partly=of_regions)
    if strategy.needs_passes or semi_supervised is not None:
        source.check(make_network())
    inferer, scoring_inferer = build_inferers(config)
    check_scores(strategy, len(task.classes))
    source = source.fitted(strategy, scoring_inferer, plan.query_size, of_regions=of_regions)
    return Experiment(
        plan=plan,
        folder=folder,
        strategy=strategy,
        source=source,
        inferer=inferer,
        scoring_inferer=scoring_inferer,
        cost=cost,
        data=data,
        oracle=oracle,
        make_network=make_network,
        recipe=recipe,
        make_trainer=make_trainer,
        checkpoint_every_n_steps=config.checkpoint_every_n_steps,
        on_nonfinite=config.on_nonfinite,
        hardware=hardware,
        n_pictures=config.pictures,
        save_maps=config.save_maps,
        target_dice=config.target_dice,
        cost_unit=config.cost,
        cross_validation=cross_validation,
        semi_supervised=semi_supervised,
        similarity=build_similarity(strategy, data.cache),
        effort=effort,
        evaluation=evaluation,
        **build_proxy(config, data),
        **build_tracking(config, task, strategy),
    )


def check_plain_settings(config: DictConfig) -> None:
    """Check the settings that build no part.

    Raises:
        ConfigError: naming the first that cannot be used.
    """
    for name in ("output_dir", "cache_dir", "experiment_name"):
        check_text(name, config[name])
    check_choice("cost", config.cost, NAMES)
    check_flag("save_maps", config.save_maps)
    check_whole_number("data.batch_size", config.data.batch_size, at_least=1)
    check_whole_number("pictures", config.pictures, at_least=0)


def build_plan(config: DictConfig) -> Plan:
    """The numbers of the experiment."""
    shape_settings = [field.name for field in fields(UnitShape)]
    settings = {field.name for field in fields(Plan)} - {"unit_shape"} - config.keys()
    check_keys("pool", config.pool, [*settings, *shape_settings])
    pool: dict[str, Any] = OmegaConf.to_container(config.pool)  # type: ignore[assignment]
    shape = {name: pool.pop(name) for name in shape_settings if name in pool}
    return Plan(
        **pool,
        unit_shape=UnitShape(**shape),
        steps_per_round=config.steps_per_round,
        val_interval=config.val_interval,
        val_interval_unit=config.val_interval_unit,
        round_start=config.round_start,
        seed=config.seed,
    )


def build_effort(config: DictConfig) -> Effort:
    """What a person's minutes are computed from."""
    check_keys("effort", config.effort, [field.name for field in fields(Effort)])
    return Effort(**config.effort)


def build_evaluation(config: DictConfig, task: Task) -> Evaluation:
    """How a round is evaluated."""
    node = config.evaluation
    settings: Any = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    if not isinstance(settings, dict):
        raise ConfigError(f"evaluation is {settings!r}; it must be a group of settings")
    check_keys("evaluation", settings, [field.name for field in fields(Evaluation)])
    evaluation = Evaluation(**settings)
    evaluation.check_classes(task.foreground)
    return evaluation


def check_distances(
    evaluation: Evaluation,
    task: Task,
    splits: Splits,
    cross_validation: CrossValidation | None,
) -> None:
    """Check that surface distances can be measured in the files of the cases that may be judged.

    Raises:
        DataError: naming the first file in which they cannot.
    """
    if not (evaluation.needs_distances and evaluation.in_source):
        return
    pool = splits.training
    judged = splits.parts(pool).validation if cross_validation is None else pool
    for case_id in (*judged, *splits.test):
        image = task.cases[case_id].images[0]
        header = read_header(image)
        VoxelSize.of(torch.from_numpy(header.affine), header.shape[:3], str(image))


def build_strategy(config: DictConfig) -> Strategy:
    """The strategy."""
    strategy: Strategy = instantiate(config.strategy)
    check_part("strategy", strategy, Strategy)
    return strategy


def build_trainer(config: DictConfig) -> tuple[Callable[..., pl.Trainer], str]:
    """What makes trainers, and the hardware that they compute on."""
    make_trainer: Callable[..., pl.Trainer] = instantiate(config.trainer)
    check_accelerator(config.trainer.accelerator)
    check_devices(config.trainer)
    # refuses bad settings now, not later
    hardware = hardware_of(make_trainer(logger=False, enable_checkpointing=False))
    return make_trainer, hardware


def build_task(config: DictConfig) -> Task:
    """The data set: its classes, channels and cases."""
    task: Task = instantiate(config.data.task)
    check_part("data.task", task, Task)
    return task


def build_splits(config: DictConfig, task: Task, oracle: Oracle) -> Splits:
    """Which cases train, validate and test, of those that the oracle can annotate.

    Raises:
        DataError: if it can annotate none, or a case to evaluate on has no label.
    """
    usable = list(task.cases) if oracle.annotates_unlabelled else task.labelled
    if not usable:
        raise DataError(
            f"no case of {task.root} has a label, so there is nothing to simulate an annotation "
            "with; oracle=person asks a person for labels"
        )
    splits: Splits = instantiate(config.data.splits, case_ids=usable)
    check_part("data.splits", splits, Splits)
    for name in ("validation", "test"):
        if bare := [i for i in getattr(splits, name) if task.cases[i].label is None]:
            raise DataError(
                f"the {name} part of data.splits holds {counted(len(bare), 'case')} without a "
                f"label: {listed(bare)}; label them, or use data/splits=growing, which evaluates "
                "on what has been annotated"
            )
    return splits


def build_data(config: DictConfig, task: Task, oracle: Oracle) -> PoolDataModule:
    """The data of the experiment; warns of what their headers leave open."""
    splits = build_splits(config, task, oracle)
    headers = check_headers(task, (*splits.validation, *splits.test), labels=True)
    headers |= check_headers(task, splits.training, labels=False)
    preprocess, augment = instantiate(config.data.preprocess), instantiate(config.data.augment)
    check_transforms("data.preprocess", preprocess)
    check_transforms("data.augment", augment)
    check_crop_ratios(config.data.get("crop_ratios"), task.classes)
    cache = VolumeCache(
        task,
        preprocess,
        fingerprint=OmegaConf.to_yaml(config.data.preprocess, resolve=True),
        folder=config.cache_dir,
    )
    unanswerable = [] if oracle.annotates_unlabelled else ignored_cases(cache, splits.training)
    unjudged = ignored_cases(cache, (*splits.validation, *splits.test))
    data = PoolDataModule(
        cache=cache,
        splits=without(splits, [*unanswerable, *unjudged]),
        augment=augment,
        batch_size=config.data.batch_size,
        num_workers=workers_for(config.data.num_workers),
        base_seed=config.seed,
    )
    if rank() == 0:
        simulated = not oracle.annotates_unlabelled
        warn(data.cache, splits, headers, unanswerable, unjudged, simulated=simulated)
    return data


def ignored_cases(cache: VolumeCache, case_ids: Sequence[str]) -> list[str]:
    """The cases whose labels ignore all of their voxels: they annotate and judge nothing."""
    return [i for i in case_ids if not cache.is_annotated(label_of(cache.task.cases[i]))]


def without(splits: Splits, case_ids: Sequence[str]) -> Splits:
    """The splits without some cases.

    Raises:
        DataError: if a part has no others.
    """
    kept = splits
    for part in PARTS:
        ids = getattr(splits, part)
        others = {part: tuple(i for i in ids if i not in case_ids)}
        kept = replace(kept, **others)  # type: ignore[arg-type]  # the names of PARTS
        if ids and not others[part]:
            lacks = "simulate an annotation with" if part == "training" else "judge networks by"
            raise DataError(
                f"the labels of all {len(ids)} {part} cases ignore all of their voxels, so there "
                f"is nothing to {lacks}; label some of them, or split otherwise"
            )
    return kept


def check_units(
    plan: Plan,
    strategy: Strategy,
    semi_supervised: SemiSupervised | None,
    oracle: Oracle,
    data: PoolDataModule,
    cross_validation: CrossValidation | None,
) -> None:
    """Check what is annotated in one go; log how large regions are.

    Raises:
        ConfigError: if a part cannot work with regions, or they cannot be as large as they should.
    """
    check_regions(plan, strategy, semi_supervised, oracle, data.splits, cross_validation)
    if plan.unit_shape.is_region and not strategy.full_data:
        sizes = region_sizes(plan.unit_shape, data.cache.task, data.splits.training)
        if rank() == 0:
            log.info(sizes)


def build_network(config: DictConfig, task: Task) -> Callable[[], torch.nn.Module]:
    """What makes untrained networks."""
    shape = len(task.channels), config.data.patch_size
    plain_network = partial(
        instantiate,
        config.model.network,
        in_channels=len(task.channels),
        out_channels=len(task.classes),
    )
    check_network(plain_network(), *shape)
    placement = config.model.get("dropout_placement", "all")
    make_network = partial(network_with_dropout, plain_network, placement, *shape)
    make_network()  # refuses a placement that the network has no layers for
    return make_network


def build_training(
    config: DictConfig, plan: Plan, n_classes: int
) -> tuple[Recipe, SemiSupervised | None]:
    """What a round trains with, and its second stage, if there is one."""
    settings, semi_supervised = config.training, instantiate(config.semi_supervised)
    if "learning_rate" in settings:
        check_number("training.learning_rate", settings.learning_rate, above=0)
    recipe = Recipe(
        loss=instantiate(settings.loss),
        optimizer=instantiate(settings.optimizer),
        schedule=instantiate(settings.schedule),
        n_steps=plan.steps_per_round,
        learning_rate=(settings.optimizer or {}).get("lr"),
        needs_total_steps="total_steps" in (settings.schedule or {}),
    )
    check_training(recipe, n_classes)
    if semi_supervised is not None and (plan.steps_per_round < 2 or recipe.learning_rate is None):
        raise ConfigError(
            f"semi_supervised needs at least two steps_per_round, here {plan.steps_per_round}, "
            "and a training.optimizer with lr"
        )
    return recipe, semi_supervised


def build_cross_validation(config: DictConfig) -> CrossValidation | None:
    """What lets the annotated cases validate each other; None where held-out cases validate."""
    cross_validation: CrossValidation | None = instantiate(config.validation)
    if cross_validation is not None:
        check_part("validation", cross_validation, CrossValidation)
    return cross_validation


def check_validation(
    cross_validation: CrossValidation | None,
    plan: Plan,
    splits: Splits,
    semi_supervised: SemiSupervised | None,
) -> None:
    """Check that the split, and how a round trains, go with how it is validated.

    Raises:
        ConfigError: if they do not.
    """
    held_out = splits.parts(splits.training).validation
    if cross_validation is None:
        if not held_out:
            raise ConfigError(
                "data.splits leaves no case to validate with; add validation=cross, or choose "
                "another data/splits"
            )
        return
    if held_out:
        raise ConfigError(
            f"validation=cross validates with all annotated cases, and data.splits keeps "
            f"{len(held_out)} of them for validation; choose data/splits=annotated, or "
            "data.validation_share=0 beside a test part"
        )
    if splits.lacks(splits.training):
        raise ConfigError(
            "validation=cross lets annotated cases of several groups validate each other, and "
            f"there is one group in the pool of {counted(len(splits.training), 'case')} by "
            f"data.groups={splits.groups}"
        )
    if plan.round_start != "scratch":
        raise ConfigError(
            f"validation=cross takes round_start=scratch, not {plan.round_start}: weights of the "
            "round before have been trained on the cases that a fold keeps for validation"
        )
    if semi_supervised is not None:
        raise ConfigError(
            "semi_supervised keeps the better of two stages by validation Dice, and with "
            "validation=cross no case only validates; choose semi_supervised=none"
        )


def build_annotation(
    config: DictConfig, task: Task, folder: Path, strategy: Strategy, effort: Effort
) -> tuple[Oracle, AnnotationCost]:
    """Who annotates what the strategy asks for, and what that costs."""
    oracle = build_oracle(config, task, folder)
    cost = cost_by(oracle, config.cost, effort)
    check_hidden_labels(strategy, oracle)
    return oracle, cost


def build_oracle(config: DictConfig, task: Task, folder: Path) -> Oracle:
    """Who annotates."""
    oracle: Oracle = instantiate(config.oracle)(task, folder)
    check_part("oracle", oracle, Oracle)
    return oracle


def check_hidden_labels(strategy: Strategy, oracle: Oracle) -> None:
    """Check that a strategy reads no hidden labels where there are none.

    Raises:
        ConfigError: if it does.
    """
    if strategy.reads_labels and oracle.annotates_unlabelled:
        raise ConfigError(
            f"strategy {strategy.name} reads labels that nobody has made yet; it works in a "
            "simulation only (oracle=simulated)"
        )


def build_inferers(config: DictConfig) -> tuple[Inferer, Inferer]:
    """What runs a network over the windows of a volume, in evaluation and while scoring."""
    inferer, scoring_inferer = (
        instantiate(config.data.inferer),
        instantiate(config.data.scoring_inferer),
    )
    check_inferer("data.inferer", inferer)
    check_inferer("data.scoring_inferer", scoring_inferer)
    return inferer, scoring_inferer


def build_proxy(config: DictConfig, data: PoolDataModule) -> dict[str, Any]:
    """The proxy task that chooses the initial volumes, if one does: fields of ``Experiment``."""
    if config.pool.get("start") != "proxy":
        return {}
    key = proxy_key(config, data.cache, data.splits.training)
    return {"proxy": instantiate(config.proxy), "proxy_key": key}


def build_similarity(strategy: Strategy, cache: VolumeCache) -> LabelledSimilarity | None:
    """What compares candidates with labelled cases by their images, for a strategy that asks."""
    return None if strategy.similarity is None else LabelledSimilarity(cache, strategy.similarity)


def build_tracking(config: DictConfig, task: Task, strategy: Strategy) -> dict[str, Any]:
    """What records the run, and what it records of the settings: fields of ``Experiment``."""
    return {
        "tracker": Trackers(instantiate(config.tracking) if rank() == 0 else {}),
        "config_hash": config_hash(config),
        "settings": flat(kept_settings(config)),
        "tags": run_tags(config, task, strategy),
    }


def network_with_dropout(
    make_network: Callable[[], Any], placement: str, n_channels: int, patch_size: Sequence[int]
) -> Any:
    """Build a network whose dropout acts where it is wanted."""
    network = make_network()
    drop_no_logits(network)
    place_dropout(network, placement, n_channels, patch_size)
    return network


def proxy_key(config: DictConfig, cache: VolumeCache, case_ids: Sequence[str]) -> str:
    """A hash of what the choice of the proxy task depends on."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    names = ("data", "model", "training", "proxy")
    plan = build_plan(config)
    images = {case_id: cache.key(cache.task.cases[case_id].images) for case_id in case_ids}
    chosen_from = {
        "images": images,
        "initial": plan.initial,
        "seed": plan.seed_of_labels,
    }
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
