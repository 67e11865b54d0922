"""Checks of settings before a run starts: parts are tried on next to nothing, hours before use."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.inferers import Inferer

from alseg.core.errors import ConfigError, check_number, check_part, check_whole_number, nearest
from alseg.data.task import Task
from alseg.strategies.statistics import VoxelStatistics
from alseg.strategies.strategy import Strategy
from alseg.training.annotated_loss import pools_samples
from alseg.training.marginal_loss import check_marginal
from alseg.training.recipe import Loss, Recipe


def check_keys(name: str, given: Collection[str], allowed: Collection[str]) -> None:
    """Check that a group holds no setting that nobody reads, such as a misspelt one.

    Raises:
        ConfigError: if it does.
    """
    for key in given:
        if key not in allowed:
            raise ConfigError(
                f"{name} has no setting {key!r}; {nearest(key, allowed)}allowed are "
                f"{', '.join(allowed)}"
            )


def check_sizes(name: str, value: object) -> None:
    """Check a setting that gives the voxels along three axes.

    Raises:
        ConfigError: if it is not three whole numbers of at least 1.
    """
    sizes = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
        raise ConfigError(f"{name} is {value!r}; it must be three whole numbers of at least 1")


def check_transforms(name: str, transforms: Any) -> None:
    """Check that a setting has built a list of transforms.

    Raises:
        ConfigError: if it has not.
    """
    if not isinstance(transforms, list) or not all(callable(t) for t in transforms):
        raise ConfigError(f"{name} builds {transforms!r}; it must build a list of transforms")


def check_crop_ratios(ratios: Sequence[float] | None, classes: Sequence[str]) -> None:
    """Check that each class has a share of the patches, background included.

    With fewer of them, MONAI's crops would leave out the last classes without a word.

    Raises:
        ConfigError: if there are fewer.
    """
    if ratios is not None and len(ratios) < len(classes):
        raise ConfigError(
            f"data.crop_ratios is {list(ratios)}; the data set has {len(classes)} classes, "
            f"{', '.join(classes)}: give one number for each"
        )


def check_network(network: torch.nn.Module, n_channels: int, patch_size: Sequence[int]) -> None:
    """Check that a network was built and takes the training patches.

    Raises:
        ConfigError: if it does not.
    """
    check_part("model.network", network, torch.nn.Module)
    check_sizes("data.patch_size", patch_size)
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


def check_training(recipe: Recipe, n_classes: int) -> None:
    """Check that loss, optimiser and schedule take what they will be given.

    Raises:
        ConfigError: if they do not.
    """
    weight = torch.nn.Parameter(torch.zeros(1))
    logits = torch.zeros(1, n_classes, 8, 8, 8)
    with name_setting_in_errors("training.loss"):
        value = recipe.loss(logits, torch.zeros(1, 1, 8, 8, 8))
        if value.ndim:
            raise ValueError(f"it gives a tensor of shape {tuple(value.shape)}, not one number")
    with name_setting_in_errors("training.optimizer"):
        optimizer = recipe.make_optimizer([weight])
    if recipe.schedule is None:
        return
    with name_setting_in_errors("training.schedule"):
        total = getattr(recipe.schedule(optimizer), "total_steps", recipe.n_steps)
    if total < recipe.n_steps:
        raise ConfigError(
            f"training.schedule.total_steps is {total}; it must be at least the "
            f"{recipe.n_steps} of steps_per_round"
        )


def check_losses(loss: Loss, source_loss: Loss | None, task: Task, *, partly: bool = False) -> None:
    """Check that training can leave out what nobody annotated.

    Args:
        loss: of ``training.loss``.
        source_loss: of the source of uncertainty; None if it has none.
        task: the data set.
        partly: whether volumes are annotated in part, whatever the data set says.

    Raises:
        ConfigError: if a loss cannot do without those voxels or classes.
    """
    for name, each in (("training.loss", loss), ("uncertainty.loss", source_loss)):
        if each is not None and (partly or task.ignore_value is not None):
            pools_samples(each, len(task.classes), name=name)
        if each is not None and task.lacks_classes:
            check_marginal(each, len(task.classes), name)


def check_inferer(name: str, inferer: Inferer) -> None:
    """Check that an inferer runs over a volume.

    Raises:
        ConfigError: if it does not.
    """
    check_part(name, inferer, Inferer)
    check_whole_number(f"{name}.sw_batch_size", getattr(inferer, "sw_batch_size", 1), at_least=1)
    overlap = getattr(inferer, "overlap", 0)
    for share in overlap if isinstance(overlap, Sequence) else [overlap]:
        check_number(f"{name}.overlap", share, at_least=0, below=1)
    volume = torch.zeros(1, 1, 8, 8, 8)
    with name_setting_in_errors(name):
        output = inferer(volume, torch.nn.Identity())
        if output.shape != volume.shape:
            raise ValueError(f"it makes {tuple(output.shape)} of a volume {tuple(volume.shape)}")


def check_scores(strategy: Strategy, n_classes: int) -> None:
    """Check that a strategy can score a case, on invented predictions of 8 x 8 x 8 voxels.

    One that needs no prediction can.

    Raises:
        ConfigError: if it cannot, or if it looks for disagreement in a single plain pass.
    """
    if not strategy.needs_prediction:
        return
    statistics = VoxelStatistics()
    noise = torch.Generator().manual_seed(0)
    for _ in range(1 if strategy.deterministic else 2):
        logits = torch.randn(n_classes, 8, 8, 8, generator=noise)
        statistics.update(logits.softmax(dim=0))
    if strategy.reads_labels:
        statistics.attach_hidden_label(torch.ones(8, 8, 8, dtype=torch.uint8))
    with name_setting_in_errors(f"strategy {strategy.name}"):
        score = strategy.score("rehearsal", statistics).score
        # rounding apart: what is not made of disagreement is far from 0 in such noise
        if strategy.deterministic and score is not None and abs(score) < 1e-6:
            raise ValueError(
                "it scores all cases 0, as a single plain pass (strategy.deterministic) has no "
                "other one to disagree with; choose another strategy/measure"
            )


@contextmanager
def name_setting_in_errors(name: str) -> Iterator[None]:
    """Report whatever a part raises as an error of its setting: users may write parts."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"{name}: {error}") from error
