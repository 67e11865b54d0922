"""Shows the plan of a data set, and measures what it costs on this device.

The steps that are measured train on real images with invented labels: no label is read.
"""

from __future__ import annotations

import copy
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from monai.transforms import Compose
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alseg.active.plan import Plan as Rounds
from alseg.config.build import (
    build_evaluation,
    build_inferers,
    build_network,
    build_plan,
    build_task,
    build_trainer,
    build_training,
)
from alseg.config.checks import check_crop_ratios, check_transforms
from alseg.config.composition import instantiate
from alseg.config.planned import filled, open_settings, plan_of, training_cases
from alseg.core.errors import ConfigError, PrecisionError, check_flag, check_text
from alseg.data.annotated_crops import collated, for_partial_labels
from alseg.data.cache import VolumeCache
from alseg.data.datamodule import without_metadata
from alseg.data.region_sizes import region_sizes
from alseg.data.task import Task
from alseg.planning.plan_file import as_yaml, write_plan
from alseg.system.console import duration, say
from alseg.training.module import SegmentationModule
from alseg.training.trainers import BFLOAT16, cpu_has_bfloat16

N_STEPS, N_WARM_UP = 3, 1  # that are measured, and before them
N_IMAGES = 2  # that the steps draw from
WORTH_IT = 1.1  # times as fast as float32


@dataclass(frozen=True)
class Costs:
    """What a training costs here.

    Attributes:
        hardware: what was computed on.
        seconds_a_step: the median, with the augmentation of its batch.
        seconds_a_volume: to segment one, as validation does.
        peak_bytes: of the GPU's memory, or of this process in main memory.
        on_gpu: which of both.
    """

    hardware: str
    seconds_a_step: float
    seconds_a_volume: float
    peak_bytes: int
    on_gpu: bool


def report_plan(config: DictConfig) -> None:
    """Print the plan of a data set, and what training by it costs.

    Args:
        config: of conf/plan.yaml.

    Raises:
        AlsegError: if the data set or the plan cannot be used.
    """
    check_flag("measure", config.measure)
    if config.save is not None:
        check_text("save", config.save)
    if not open_settings(config):
        raise ConfigError("nothing is auto, so there is nothing to plan; use data=auto")
    task = build_task(config)  # once: large folders take long to list
    plan = plan_of(config, Path.cwd(), unlabelled=True, task=task)
    config = filled(config, plan, "the plan")
    check_crop_ratios(config.data.get("crop_ratios"), task.classes)
    n_networks = build_evaluation(config, task).networks
    say(as_yaml(plan).rstrip())
    shape = build_plan(config).unit_shape
    if shape.is_region:
        cases = training_cases(config, task, Path.cwd(), unlabelled=True)
        say(f"# {region_sizes(shape, task, cases)}")
    if config.measure:
        with TemporaryDirectory() as cache:
            costs = costs_of(config, task, Path(cache))
            print_costs(config, costs, n_networks)
            if not costs.on_gpu and config.trainer.precision == "auto" and cpu_has_bfloat16():
                print_bfloat16(costs, config, task, Path(cache))
    if config.save is not None:
        write_plan(Path(config.save), plan)
        say(f"# written to {config.save}; use it with data.plan={config.save}")


def print_costs(config: DictConfig, costs: Costs, n_networks: int) -> None:
    """Print the costs as comments, so that what is printed can be kept as a plan."""
    where = "of the GPU's memory" if costs.on_gpu else "of memory, the whole process"
    n_steps = config.steps_per_round
    each = f", of each of {n_networks} networks" if n_networks > 1 else ""
    a_round = costs.seconds_a_step * n_steps * n_networks
    a_volume = costs.seconds_a_volume * n_networks
    say(f"# Measured on {costs.hardware}:")
    say(
        f"# {costs.seconds_a_step:.3f} s a step, {duration(a_round)} for the {n_steps} steps of a "
        f"round{each}; {a_volume:.2f} s to segment a volume"
    )
    say(f"# {costs.peak_bytes / 2**30:.2f} GiB {where}")


def print_bfloat16(costs: Costs, config: DictConfig, task: Task, cache_folder: Path) -> None:
    """Print what bfloat16 would cost on this CPU, if a step is faster by a tenth at least.

    Args:
        costs: in float32.
        config, task, cache_folder: as for ``costs_of``.
    """
    config = copy.deepcopy(config)
    config.trainer.precision = BFLOAT16
    try:
        seconds = costs_of(config, task, cache_folder).seconds_a_step
    except PrecisionError as error:
        say(f"# Not in bfloat16: {error.args[0]}")  # without what helps: this run is in float32
        return
    if (times := costs.seconds_a_step / seconds) >= WORTH_IT:
        say(
            f"# With trainer.precision={BFLOAT16} {seconds:.3f} s a step: this CPU trains "
            f"{times:.1f} times as fast in bfloat16"
        )


def costs_of(config: DictConfig, task: Task, cache_folder: Path) -> Costs:
    """Take a few training steps on a few images, and segment one.

    Args:
        config: with the values of the plan.
        task: the data set.
        cache_folder: for preprocessed images.
    """
    make_trainer, hardware = build_trainer(config)
    transforms, augment = instantiate(config.data.preprocess), instantiate(config.data.augment)
    check_transforms("data.preprocess", transforms)
    check_transforms("data.augment", augment)
    fingerprint = OmegaConf.to_yaml(config.data.preprocess, resolve=True)
    cache = VolumeCache(task, transforms, fingerprint, cache_folder)
    rounds: Rounds = build_plan(config)
    recipe, _ = build_training(config, rounds, len(task.classes))
    inferer, _ = build_inferers(config)
    module = SegmentationModule(build_network(config, task)(), recipe, inferer, task.foreground)
    ids = sorted(training_cases(config, task, Path.cwd(), unlabelled=True))[:N_IMAGES]
    images = [cache.image(case_id)["image"] for case_id in ids]
    draws = InventedDraws(
        images, len(task.classes), augment, (N_WARM_UP + N_STEPS) * config.data.batch_size
    )
    clock = Clock()
    trainer = make_trainer(
        max_steps=N_WARM_UP + N_STEPS,
        logger=False,
        enable_checkpointing=False,
        added_callbacks=[clock],
        limit_val_batches=0,
    )
    loader = DataLoader(draws, batch_size=config.data.batch_size, collate_fn=collated)
    trainer.fit(module, loader)
    return Costs(
        hardware,
        statistics.median(clock.seconds[N_WARM_UP:]),
        seconds_to_segment(module, images[0], trainer.strategy.root_device),
        clock.peak_bytes,
        clock.on_gpu,
    )


class InventedDraws(Dataset):
    """Training samples of real images [channels, D, H, W] with invented labels."""

    def __init__(
        self, images: Sequence[Tensor], n_classes: int, augment: Sequence[Any], n_draws: int
    ) -> None:
        self.images, self.n_classes, self.n_draws = images, n_classes, n_draws
        self.augment = Compose(for_partial_labels(augment))

    def __len__(self) -> int:
        return self.n_draws

    def __getitem__(self, index: int) -> Any:
        image = self.images[index % len(self.images)]
        # stripes: each class is there
        stripes = torch.arange(image[0].numel()).reshape(image.shape[1:]) % self.n_classes
        sample: Any = {"image": image.clone(), "label": stripes[None].to(torch.uint8)}
        with without_metadata():
            return self.augment(sample)


class Clock(pl.Callback):
    """Takes the time of each step, from the beginning of the one before."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peak_bytes, self.on_gpu = 0, False
        self._before = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self.on_gpu = trainer.strategy.root_device.type == "cuda"
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self._before = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop and start again."""
        if self.on_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._before)
        self._before = now

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See what it took of memory."""
        unit = 1 if sys.platform == "darwin" else 1024
        self.peak_bytes = (
            torch.cuda.max_memory_allocated()
            if self.on_gpu
            else unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )


def seconds_to_segment(module: SegmentationModule, image: Tensor, device: torch.device) -> float:
    """The time that it takes to segment an image [channels, D, H, W]."""
    module = module.to(device).eval()
    started = time.perf_counter()
    module.predict_labels(image[None].to(device)).cpu()
    return time.perf_counter() - started
