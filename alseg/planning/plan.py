"""The plan of a data set: settings, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alseg.core.counts import by, counted
from alseg.data.findings import in_mm
from alseg.planning import rules
from alseg.planning.budget import Budget
from alseg.planning.facts import Facts

AUTO = "auto"  # what a setting is that the plan gives a value
AXES = ("left-right", "back-front", "foot-head")


@dataclass(frozen=True)
class Plan:
    """Settings by their dotted names, and why they are what they are.

    Attributes:
        values: plain numbers, lists and dicts.
        reasons: a line each.
        title: lines on what the plan is made from.
    """

    values: Mapping[str, Any]
    reasons: Mapping[str, str] = field(default_factory=dict)
    title: tuple[str, ...] = ()


def make_plan(
    facts: Facts,
    budget: Budget,
    given: Mapping[str, Any] | None = None,
    divisor: rules.Sizes | None = None,
) -> Plan:
    """Apply the rules one after the other; what is given stays, and the rest follows from it.

    Args:
        facts: of the images.
        budget: of the device.
        given: settings that somebody else has decided.
        divisor: [3] by what the network can divide patches, where it is not of the plan.
    """
    planner = _Planner(facts, budget, dict(given or {}))
    spacing, coarse = planner.spacing()
    transforms, why = rules.intensities(facts.channels)
    planner.take("data.intensities", transforms, why)
    patch = planner.patch(spacing, divisor)
    strides, n_filters = planner.network(spacing, patch)
    n_batch = planner.batch(spacing, patch, strides, n_filters)
    planner.window(spacing, patch, divisor or rules.divisors(strides), n_batch)
    planner.augmentation(coarse)
    planner.training()
    return Plan(planner.values, planner.reasons, planner.title())


class _Planner:
    """Collects values and reasons; a value that is given wins."""

    def __init__(self, facts: Facts, budget: Budget, given: dict[str, Any]) -> None:
        self.facts, self.budget, self.numbers = facts, budget, budget.numbers
        self.given = given
        self.values: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}

    def take(self, name: str, value: Any, reason: str) -> Any:
        is_given = name in self.given
        self.values[name] = self.given[name] if is_given else value
        self.reasons[name] = "as it was set, not planned" if is_given else reason
        return self.values[name]

    def title(self) -> tuple[str, ...]:
        facts, budget = self.facts, self.budget
        return (
            f"Plan of data=auto for {facts.name}: {facts.n_images} images, {len(facts.shapes)} "
            f"headers and voxels of {facts.n_sampled} images were read, and no label.",
            f"Made for {budget.device} with {budget.memory_bytes / 2**30:.1f} GiB of memory.",
            "Change what you like; data.plan=THIS_FILE uses it as it is.",
            f"Three numbers are along {', '.join(AXES)}.",
        )

    def spacing(self) -> tuple[list[float], int | None]:
        numbers, facts = self.numbers, self.facts
        spacing, coarse = rules.median_spacing(facts, numbers)
        shape = rules.median_shape(facts, spacing).astype(int)
        reason = f"the median of the images, mm ({by(shape)} voxels)"
        if coarse is not None:
            reason += f"; {AXES[coarse]} is coarse: the 10th percentile there, as nnU-Net takes it"
        max_voxels = numbers.step_voxels / numbers.min_batch / numbers.coverage
        larger = rules.coarser_spacing(facts, spacing, max_voxels)
        if larger != spacing:
            reason = (
                f"mm; coarser than the median of {in_mm(np.array(spacing))}, so that a patch that "
                f"{self.budget.device} can train with shows {numbers.coverage:.0%} of an image"
            )
        spacing = self.take("data.spacing_mm", larger, reason)
        return spacing, rules.coarse_axis(spacing, numbers.anisotropy)

    def patch(self, spacing: list[float], divisor: rules.Sizes | None) -> list[int]:
        numbers = self.numbers
        shape = rules.median_shape(self.facts, spacing)
        n_patches = self.given.get("data.batch_size", numbers.min_batch)

        def fits(patch: Any) -> bool:
            strides, _ = rules.levels(spacing, patch, numbers)
            n_filters = rules.filters(len(strides), numbers)
            needed = self.bytes(patch, n_patches, strides, n_filters)
            is_small = math.prod(patch) * n_patches <= numbers.step_voxels
            return is_small and needed <= self.budget.usable_bytes

        patch = rules.patch_size(spacing, shape, numbers, fits, divisor)
        part = min(1.0, math.prod(patch) / float(shape.prod()))
        return list(
            self.take(
                "data.patch_size",
                patch,
                f"voxels: {part:.0%} of the median image of {by(shape.astype(int))}; a step sees "
                f"at most {numbers.step_voxels} voxels in {n_patches} patches",
            )
        )

    def bytes(self, patch: Any, n_patches: int, strides: Any, n_filters: Any) -> int:
        return rules.training_bytes(patch, n_patches, strides, n_filters, self.facts.n_classes)

    def network(self, spacing: list[float], patch: list[int]) -> tuple[Any, Any]:
        strides, kernels = rules.levels(spacing, patch, self.numbers)
        flat = sum(min(kernel) == 1 for kernel in kernels)
        strides = self.take(
            "model.strides",
            [list(s) for s in strides],
            "of each level: axes are halved while they keep "
            f"{self.numbers.min_edge} voxels, the finest first",
        )
        self.take(
            "model.kernel_size",
            [list(k) for k in kernels],
            f"of each level: {counted(flat, 'level does', 'levels do')} not mix voxels along "
            "the coarse axis"
            if flat
            else "of each level: the axes are alike",
        )
        n_filters = self.take(
            "model.filters",
            rules.filters(len(strides), self.numbers),
            f"twice as many from level to level, {self.numbers.max_filters} at most",
        )
        return strides, n_filters

    def batch(self, spacing: list[float], patch: list[int], strides: Any, n_filters: Any) -> int:
        def fits(n_patches: int) -> bool:
            return self.bytes(patch, n_patches, strides, n_filters) <= self.budget.usable_bytes

        n_voxels = self.facts.n_images * float(rules.median_shape(self.facts, spacing).prod())
        n_batch = rules.batch_size(patch, n_voxels, self.numbers, fits)
        n_batch = self.given.get("data.batch_size", n_batch)
        gib = self.bytes(patch, n_batch, strides, n_filters) / 2**30
        return int(
            self.take(
                "data.batch_size",
                n_batch,
                f"patches a step, which take about {gib:.2f} of "
                f"{self.budget.memory_bytes / 2**30:.1f} GiB",
            )
        )

    def window(
        self, spacing: list[float], patch: list[int], divisor: rules.Sizes, n_batch: int
    ) -> None:
        max_voxels = 2 * n_batch * math.prod(patch)
        window = rules.scoring_window(patch, self.facts, spacing, divisor, max_voxels)
        one = "one window holds nine images of ten" if window != patch else "the training patch"
        self.take("data.scoring_window", window, f"voxels of a window while scoring: {one}")

    def augmentation(self, coarse: int | None) -> None:
        ratios = rules.crop_ratios(self.facts.n_classes)
        self.take(
            "data.crop_ratios",
            ratios,
            "of patches around each class: equally many, background included",
        )
        numbers = self.numbers
        if coarse is None:
            angle, where = numbers.rotation, "each axis"
        else:
            angle = numbers.rotation_in_slices
            where = "the coarse axis only, within the slices"
        self.take(
            "data.rotate_range",
            rules.in_plane(angle, coarse, rotation=True),
            f"radians, about {where}",
        )
        self.take(
            "data.scale_range",
            rules.in_plane(self.numbers.scaling, coarse, rotation=False),
            "change of size"
            + (", alike along each axis" if coarse is None else ", not across slices"),
        )

    def training(self) -> None:
        steps = self.take(
            "steps_per_round",
            self.numbers.steps,
            "alseg.plan measures what they take on this device",
        )
        interval = max(1, int(steps) // self.numbers.validations)
        self.take(
            "val_interval", interval, f"steps: {self.numbers.validations} validations a round"
        )
