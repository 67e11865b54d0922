"""What a training takes besides a network and data."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from alseg.core.errors import ConfigError
from alseg.training.recipe import Recipe

RECIPE = Recipe(
    loss=nn.functional.mse_loss,
    optimizer=partial(torch.optim.AdamW, weight_decay=0.5),
    schedule=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1),
    n_steps=20,
    learning_rate=0.1,
    needs_total_steps=True,
)


def weight() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(1))]


def test_a_schedule_is_as_long_as_the_training() -> None:
    for recipe, n_steps in ((RECIPE, 20), (RECIPE.for_steps(7), 7)):
        schedule = recipe.make_schedule(recipe.make_optimizer(weight()))
        assert schedule.total_steps == recipe.n_steps == n_steps
    assert RECIPE.n_steps == 20


def test_a_schedule_without_a_length_is_left_as_it_is() -> None:
    step = partial(torch.optim.lr_scheduler.StepLR, step_size=5)
    recipe = replace(RECIPE, schedule=step, needs_total_steps=False).for_steps(7)
    assert recipe.make_schedule(recipe.make_optimizer(weight())).step_size == 5


def test_fine_tuning_has_a_constant_share_of_the_learning_rate() -> None:
    recipe = RECIPE.fine_tuning(0.5, 3)
    optimizer = recipe.make_optimizer(weight())
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    assert recipe.make_schedule(optimizer) is None
    assert (recipe.n_steps, recipe.loss) == (3, RECIPE.loss)


def test_an_optimiser_without_a_learning_rate_trains_and_is_not_fine_tuned() -> None:
    recipe = replace(RECIPE, learning_rate=None)
    assert recipe.make_optimizer(weight()).param_groups[0]["lr"] == 1e-3  # its own
    with pytest.raises(ConfigError, match=r"training\.optimizer with lr"):
        recipe.fine_tuning(0.5, 3)
