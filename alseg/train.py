"""Run an active-learning experiment: ``python -m alseg.train strategy=variance``.

This is the only module that composes: it reads the configuration, instantiates the parts and hands
them to ``run_rounds``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from alseg import __version__
from alseg.callbacks.acquisition import query_rows
from alseg.cli import conf_folder, run_entry_point
from alseg.cold_start import initial_cases
from alseg.costs import cost_named
from alseg.data.cases import Splits, Task, check_headers
from alseg.data.datamodule import PoolDataModule
from alseg.data.oracle import SimulatedOracle
from alseg.data.preprocess import VolumeCache
from alseg.data.similarity import LabelledSimilarity
from alseg.distributed import from_first, process_group, rank, wait_for_all
from alseg.errors import ConfigError, DataError, check_whole_number
from alseg.evaluation import area_under_budget_curve
from alseg.experiment import Experiment, Plan
from alseg.models.pseudo_labels import SemiSupervised
from alseg.models.segmentation import SegmentationModule
from alseg.models.svgd import SVGD, SteinModule
from alseg.models.uncertainty import UncertaintySource
from alseg.pool import Pool
from alseg.proxy import proxy_start
from alseg.report import print_summary
from alseg.rounds import prepare, run_rounds
from alseg.seeding import seed_for
from alseg.settings import CONFIG_FILE, config_hash, flat, load_config, save_config
from alseg.state import STATE_FILE, RunState, hold
from alseg.strategies.strategy import Strategy
from alseg.sweeps import run_job
from alseg.tracking import NoTracker, Tracker
from alseg.trainers import check_accelerator, check_devices, check_optimizer, workers_for

log = logging.getLogger(__name__)


def train(config: DictConfig) -> float:
    """Run the experiment that a composed configuration describes.

    Returns:
        The area under the budget curve of the *validation* Dice, for hyper-parameter sweepers: test
        data must not steer a search.

    Raises:
        AlsegError: with one clear sentence, if the data or the settings cannot be used.
    """
    # torchrun's processes start within the same second, or not: they take the first one's folder
    folder = from_first(Path(HydraConfig.get().runtime.output_dir))
    if not config.resume:
        return start_or_resume(config, folder, resume=False)
    folder = Path(config.resume)
    if not folder.is_dir():
        raise DataError(f"there is nothing to resume in {folder}: it is not a folder")
    others = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
    if others:
        raise ConfigError(
            f"resume takes all settings from {folder / CONFIG_FILE}; drop {' '.join(others)}"
        )
    with hold(folder):  # before the state is read: another process may be changing it
        return start_or_resume(config, folder, resume=True)


def start_or_resume(config: DictConfig, folder: Path, *, resume: bool) -> float:
    """Run the experiment in ``folder``, from its saved configuration and state if it is resumed."""
    state = None
    if resume:
        if (folder / STATE_FILE).exists() or not (folder / CONFIG_FILE).exists():
            state = RunState.load(folder)
        config = load_config(folder)
        if state is not None and state.config_hash != config_hash(config):
            raise ConfigError(f"{folder / CONFIG_FILE} was changed after the run had started")
    elif (folder / STATE_FILE).exists():
        raise ConfigError(f"{folder} holds a run already; continue it with resume={folder}")
    experiment = build(config, folder)
    if state is None:
        pool = initial_pool(config, experiment)
        labels = experiment.oracle.annotate(pool.labelled)
        costs = {case_id: experiment.cost(path) for case_id, path in labels.items()}
        state = RunState(
            pool=pool,
            config_hash=config_hash(config),
            queries=query_rows(0, pool.labelled, {}, costs),
        )
    prepare(experiment, state.pool)
    wait_for_all()  # all have looked at the folder before the first one writes to it
    with nullcontext() if resume else hold(folder):
        if not state.finished_rounds:
            save_config(config, folder)
        state = run_rounds(experiment, state)
    if rank() == 0:
        print_summary(experiment, state)
    labelled = [row["labelled"] for row in state.history]
    return area_under_budget_curve(labelled, [row["val_dice"] for row in state.history])


def build(config: DictConfig, folder: Path) -> Experiment:
    """Instantiate the parts of an experiment; check what can be checked.

    Args:
        config: the composed configuration.
        folder: the run folder.

    Raises:
        AlsegError: naming the file or the setting that cannot be used.
    """
    plan = Plan(
        **config.pool,
        steps_per_round=config.steps_per_round,
        val_interval=config.val_interval,
        val_interval_unit=config.val_interval_unit,
        round_start=config.round_start,
        seed=config.seed,
    )
    strategy: Strategy = part(config.strategy)
    source: UncertaintySource = part(config.uncertainty)
    cost = cost_named(config.cost)
    make_trainer = part(config.trainer)
    check_accelerator(config.trainer.accelerator)
    check_devices(config.trainer)
    make_trainer(logger=False, enable_checkpointing=False)  # refuses bad settings now, not later
    if not isinstance(config.save_maps, bool):
        raise ConfigError(f"save_maps is {config.save_maps!r}; it must be true or false")
    optimizer = part(config.training.optimizer)
    check_optimizer(optimizer)
    check_whole_number("data.batch_size", config.data.batch_size, at_least=1)
    check_whole_number("pictures", config.pictures, at_least=0)
    task: Task = part(config.data.task)
    splits: Splits = part(config.data.splits, case_ids=list(task.cases))
    check_headers(task, (*splits.validation, *splits.test), labels=True)
    check_headers(task, splits.training, labels=False)

    make_network = partial(
        part,
        config.model.network,
        in_channels=len(task.channels),
        out_channels=len(task.classes),
    )
    network = make_network()
    check_network(network, len(task.channels), config.data.patch_size)
    if strategy.needs_passes:
        source.check(network)
    semi_supervised: SemiSupervised | None = part(config.semi_supervised)
    if semi_supervised is not None:
        source.check(network)
        if plan.steps_per_round < 2 or "lr" not in getattr(optimizer, "keywords", {}):
            raise ConfigError(
                f"semi_supervised needs at least two steps_per_round, here {plan.steps_per_round}, "
                "and a training.optimizer with lr"
            )
    tracker: Tracker = part(config.tracking) if rank() == 0 else NoTracker()
    data = PoolDataModule(
        cache=VolumeCache(
            task,
            part(config.data.preprocess),
            fingerprint=OmegaConf.to_yaml(config.data.preprocess, resolve=True),
            folder=config.cache_dir,
        ),
        splits=splits,
        augment=part(config.data.augment),
        batch_size=config.data.batch_size,
        num_workers=workers_for(config.data.num_workers),
        base_seed=plan.seed,
    )
    joint_loss = source.loss if isinstance(source, SVGD) else None
    return Experiment(
        plan=plan,
        folder=folder,
        strategy=strategy,
        source=source,
        scoring_inferer=part(config.data.scoring_inferer),
        cost=cost,
        data=data,
        oracle=SimulatedOracle(task),
        make_network=make_network,
        make_module=partial(
            SteinModule if isinstance(source, SVGD) else SegmentationModule,
            loss=joint_loss or part(config.training.loss),
            optimizer=optimizer,
            schedule=part(config.training.schedule),
            inferer=part(config.data.inferer),
            classes=task.foreground,
        ),
        make_trainer=make_trainer,
        tracker=tracker,
        settings=flat(OmegaConf.to_container(config, resolve=True)),
        tags=run_tags(config, task, strategy),
        n_pictures=config.pictures,
        save_maps=config.save_maps,
        semi_supervised=semi_supervised,
        similarity=(
            None
            if strategy.similarity is None
            else LabelledSimilarity(data.cache, strategy.similarity)
        ),
    )


def part(node: Any, **arguments: Any) -> Any:
    """Instantiate a configuration node; plain lists and dicts, which libraries check for."""
    return instantiate(node, _convert_="all", **arguments)


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
        key = proxy_key(config, splits.training)
        # the training's loss: a committee's own must not change the start
        loss = part(config.training.loss)
        initial = proxy_start(experiment, part(config.proxy), loss, plan.initial, key)
    else:
        if plan.start != "random":
            data.prepare(splits.training)
        initial = initial_cases(plan.start, data.cache, splits.training, plan.initial, seed)
    check_headers(task, initial, labels=True)
    return Pool.start(splits.training, initial)


def proxy_key(config: DictConfig, case_ids: Sequence[str]) -> str:
    """A hash of what the choice of the proxy task depends on."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    names = ("data", "model", "training", "proxy", "trainer", "seed")
    chosen_from = {"case_ids": list(case_ids), "initial": config.pool.initial}
    return config_hash(OmegaConf.create({name: content[name] for name in names} | chosen_from))


def check_network(network: torch.nn.Module, n_channels: int, patch_size: Sequence[int]) -> None:
    """Check that the network takes the training patches.

    Raises:
        ConfigError: if it does not.
    """
    patch = torch.empty(1, n_channels, *patch_size, device="meta")
    try:
        output = network.to("meta").eval()(patch)  # shapes only: no memory, no arithmetic
    except Exception as error:  # networks let errors of all kinds through
        raise ConfigError(
            f"the network does not take patches of data.patch_size={list(patch_size)}: {error}"
        ) from error
    if output.shape[2:] != patch.shape[2:]:
        raise ConfigError(
            f"the network does not take patches of data.patch_size={list(patch_size)}: it makes "
            f"{list(output.shape[2:])} of them; each size must be divisible by the product of its "
            "strides"
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


@hydra.main(version_base="1.3", config_path=conf_folder(), config_name="config")
def _hydra_main(config: DictConfig) -> float:
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return run_job(config, folder)
        if config.sweep.resume:
            raise ConfigError(
                "sweep.resume continues a sweep (-m); continue a single run with resume=RUN_FOLDER"
            )
        if rank() > 0:
            logging.disable(logging.INFO)  # the first process says it all
        with process_group():
            return train(config)
    finally:
        # Hydra makes the folder before the settings are checked: leave no empty ones behind.
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def main() -> None:
    """The entry point of ``python -m alseg.train``."""
    run_entry_point(_hydra_main)


if __name__ == "__main__":
    main()
