"""How a network is trained: loss, optimiser, learning-rate schedule and number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from alseg.core.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """What a training takes besides a network and data.

    Attributes:
        loss: maps (logits [B, C, d, h, w], labels [B, 1, d, h, w]) to a scalar.
        optimizer: makes the optimiser from the parameters, and from ``lr`` if there is a
            ``learning_rate``.
        schedule: makes the learning-rate schedule from the optimiser, and from ``total_steps`` if
            it ``needs_total_steps``; one step a training step. None for a constant learning rate.
        n_steps: optimiser steps.
        learning_rate: of the optimiser; None for one that has none, or keeps its own.
        needs_total_steps: whether the schedule has a length, which is that of the training.
    """

    loss: Loss
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[..., Any] | None
    n_steps: int
    learning_rate: float | None = None
    needs_total_steps: bool = False

    def for_steps(self, n_steps: int) -> Recipe:
        """The same recipe for a shorter or longer training."""
        return replace(self, n_steps=n_steps)

    def fine_tuning(self, factor: float, n_steps: int) -> Recipe:
        """The same recipe with a constant learning rate, ``factor`` times the optimiser's.

        Raises:
            ConfigError: if the learning rate is not known.
        """
        if self.learning_rate is None:
            raise ConfigError("fine-tuning needs a training.optimizer with lr")
        learning_rate = factor * self.learning_rate
        return replace(self, n_steps=n_steps, learning_rate=learning_rate, schedule=None)

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of these parameters."""
        if self.learning_rate is None:
            return self.optimizer(parameters)
        return self.optimizer(parameters, lr=self.learning_rate)

    def make_schedule(self, optimizer: torch.optim.Optimizer) -> Any:
        """The schedule of an optimiser's learning rate; None if it is constant."""
        if self.schedule is None:
            return None
        if self.needs_total_steps:
            return self.schedule(optimizer, total_steps=self.n_steps)
        return self.schedule(optimizer)
