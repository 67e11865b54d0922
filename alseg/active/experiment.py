"""What an experiment consists of: its numbers and its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from monai.inferers import Inferer

from alseg.active.answer_costs import AnswerCosts
from alseg.active.plan import Plan
from alseg.active.proxy_settings import Proxy
from alseg.active.pseudo_labels import SemiSupervised
from alseg.active.region_units import RegionUnits
from alseg.core.errors import ConfigError, check_choice, check_number, check_whole_number
from alseg.data.datamodule import PoolDataModule
from alseg.data.folds import CrossValidation
from alseg.data.similarity import LabelledSimilarity
from alseg.networks.committee import Committee
from alseg.oracles.base import Oracle
from alseg.oracles.costs import AnnotationCost, Effort
from alseg.run.folder import round_folder
from alseg.scoring.sources import UncertaintySource
from alseg.scoring.svgd import SVGD
from alseg.strategies.regions import looks_at_regions
from alseg.strategies.strategy import Strategy
from alseg.tracking.tracker import Trackers
from alseg.training.callbacks.non_finite import ON_NON_FINITE
from alseg.training.evaluation import Evaluation
from alseg.training.module import SegmentationModule
from alseg.training.recipe import Recipe
from alseg.training.svgd import SteinModule


@dataclass(frozen=True)
class Experiment:
    """The parts that the rounds work with.

    Attributes:
        plan: the numbers.
        folder: the run folder; it exists.
        strategy: chooses the queries.
        source: makes the passes that the strategy's statistics are taken from.
        scoring_inferer: runs a network over the windows of a volume while scoring.
        cost: of annotating a unit.
        semi_supervised: the second stage of a round; None for none.
        similarity: of candidates to labelled cases by their images, where the strategy asks for it.
        data: serves the loaders.
        oracle: reveals labels.
        make_network: builds an untrained network.
        recipe: the training's, for the steps of a round.
        inferer: runs a network over the windows of a volume in evaluation.
        make_trainer: builds a Lightning trainer from its per-round settings.
        tracker: records the run.
        config_hash: of the settings that results depend on.
        settings: the run's settings, flat, for the record.
        tags: what runs are grouped by, for the record.
        checkpoint_every_n_steps: steps of training that are repeated at most after an interruption;
            None for a checkpoint only at an interruption.
        on_nonfinite: ``stop`` at a training step with a non-finite loss or gradient, or ``skip``.
        hardware: what this process computes on.
        n_pictures: queries to draw a round.
        save_maps: whether to write NIfTI maps of the queries.
        proxy: the proxy task that chooses the initial volumes; None where none does.
        target_dice: a Dice that the advice on when to stop speaks of; None for none.
        cost_unit: what ``cost`` counts.
        cross_validation: lets the annotated cases validate each other; None where others validate.
        proxy_key: names all that its choice depends on.
        effort: what a region's cost in a person's minutes is computed from.
        evaluation: how a round is evaluated.
    """

    plan: Plan
    folder: Path
    strategy: Strategy
    source: UncertaintySource
    scoring_inferer: Inferer
    cost: AnnotationCost
    data: PoolDataModule
    oracle: Oracle
    make_network: Callable[[], torch.nn.Module]
    recipe: Recipe
    inferer: Inferer
    make_trainer: Callable[..., pl.Trainer]
    tracker: Trackers
    config_hash: str
    settings: Mapping[str, Any]
    tags: Mapping[str, str]
    checkpoint_every_n_steps: int | None
    on_nonfinite: str
    hardware: str
    n_pictures: int
    save_maps: bool
    similarity: LabelledSimilarity | None = None
    semi_supervised: SemiSupervised | None = None
    proxy: Proxy | None = None
    proxy_key: str = ""
    target_dice: float | None = None
    cost_unit: str = "volume"
    cross_validation: CrossValidation | None = None
    effort: Effort = field(default_factory=Effort)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        if self.checkpoint_every_n_steps is not None:
            check_whole_number(
                "checkpoint_every_n_steps", self.checkpoint_every_n_steps, at_least=1
            )
        check_number("target_dice", self.target_dice, above=0, at_most=1, or_null=True)
        check_choice("on_nonfinite", self.on_nonfinite, ON_NON_FINITE)
        self.check_networks()

    def check_networks(self) -> None:
        """Check that the mean prediction of several networks goes with how a round trains.

        Raises:
            ConfigError: naming what it does not go with.
        """
        if self.evaluation.networks == 1:
            return
        if self.cross_validation is not None:
            other = "validation=cross, where one network a fold judges the fold's cases"
        elif self.semi_supervised is not None:
            other = "semi_supervised, whose second stage the round's first network has only"
        elif isinstance(self.source, SVGD):
            other = "uncertainty=svgd, whose networks are trained as one"
        else:
            return
        raise ConfigError(
            f"evaluation.networks is {self.evaluation.networks}, which does not go with {other}; "
            "leave it at 1"
        )

    @property
    def regions(self) -> RegionUnits | None:
        """The regions that may be asked for; None where units are whole volumes."""
        shape = self.plan.unit_shape
        if not shape.is_region or self.strategy.full_data:
            return None
        return RegionUnits(
            self.data.cache, shape, self.plan.max_regions_per_case, self.oracle.annotatable
        )

    @property
    def answer_costs(self) -> AnswerCosts:
        """What says what an answer has cost."""
        ignored = self.data.cache.task.ignore_value
        is_region = self.plan.unit_shape.is_region
        return AnswerCosts(self.cost, ignored, self.effort if is_region else None)

    @property
    def needs_prediction(self) -> bool:
        """Whether a query needs the network to look at the candidates."""
        if self.regions is not None:
            return looks_at_regions(self.strategy)
        return self.strategy.needs_prediction

    @property
    def round_recipe(self) -> Recipe:
        """What a round trains with: a committee with the loss of its source, if that has one."""
        loss = self.source.loss or self.recipe.loss
        return replace(self.recipe, loss=loss).for_steps(self.steps_per_round)

    def make_module(self, network: torch.nn.Module, recipe: Recipe) -> SegmentationModule:
        """Wrap a network, or a committee, into the module that trains and evaluates it."""
        kind = SteinModule if isinstance(network, Committee) else SegmentationModule
        classes = self.data.cache.task.foreground
        return kind(network, recipe, self.inferer, classes, self.evaluation)

    @property
    def steps_per_round(self) -> int:
        """Optimiser steps in each round.

        The plan's; in the only round of full data, as many as the network of the other strategies'
        last round has behind it: those of all rounds, where each continues from the one before.
        """
        continues = self.plan.round_start != "scratch"
        full_data = self.strategy.full_data
        return self.plan.steps_per_round * (self.plan.rounds if full_data and continues else 1)

    def round_folder(self, round_number: int) -> Path:
        """Where a round leaves its files; made if it is not there."""
        folder = round_folder(self.folder, round_number)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
