"""Facts of data sets that there are not, and plans made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from alseg.config.planned import filled, given_settings, network_divisor, open_settings
from alseg.planning.budget import Budget
from alseg.planning.facts import Channel, Facts
from alseg.planning.numbers import CPU, GPU
from alseg.planning.plan import make_plan

ON_CPU = Budget("the CPU", 16 * 2**30, CPU)
ON_GPU = Budget("a GPU", 8 * 2**30, GPU)


def channel(name: str = "CT", zero_share: float = 0.0) -> Channel:
    """A channel whose intensities are those of soft tissue in CT."""
    return Channel(name, low=-100.0, median=20.0, high=300.0, spread=60.0, zero_share=zero_share)


def facts(
    shape: Sequence[int] = (64, 64, 48),
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    **changes: Any,
) -> Facts:
    """Ten images of one shape and spacing."""
    content: dict[str, Any] = {
        "name": "Blobs",
        "n_images": 10,
        "n_sampled": 10,
        "n_classes": 3,
        "channels": (channel(),),
        "shapes": (tuple(shape),) * 10,
        "spacings_mm": (tuple(spacing_mm),) * 10,
    }
    return Facts(**content | changes)


def with_a_plan(config: DictConfig) -> DictConfig:
    """A composed configuration, with a plan's values where it is auto; no file is read."""
    if not open_settings(config):
        return config
    plan = make_plan(facts(), ON_CPU, given_settings(config), network_divisor(config))
    return filled(config, plan, "a plan")
