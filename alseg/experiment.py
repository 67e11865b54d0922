"""What an experiment consists of: its numbers and its parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from monai.inferers import Inferer

from alseg.callbacks.non_finite import ON_NON_FINITE
from alseg.cold_start import STARTS
from alseg.costs import AnnotationCost
from alseg.data.datamodule import PoolDataModule
from alseg.data.oracle import Oracle
from alseg.data.similarity import LabelledSimilarity
from alseg.errors import ConfigError, check_choice, check_flag, check_whole_number
from alseg.models.pseudo_labels import SemiSupervised
from alseg.models.segmentation import SegmentationModule
from alseg.models.uncertainty import UncertaintySource
from alseg.strategies.strategy import Strategy
from alseg.tracking.tracker import Trackers

ROUND_STARTS = ("scratch", "continue", "continue_last")
INTERVAL_UNITS = ("steps", "epochs")


@dataclass(frozen=True)
class Plan:
    """The numbers of an experiment.

    Attributes:
        initial: labelled volumes in the first round.
        query_size: volumes acquired after each round but the last.
        rounds: number of rounds.
        steps_per_round: optimiser steps in each round.
        val_interval: steps, or passes over the labelled volumes, between two validations.
        val_interval_unit: ``steps`` or ``epochs``.
        round_start: the weights a round starts from: ``scratch`` (a new network), ``continue``
            (the previous round's best by validation, as in the tutorial) or ``continue_last`` (the
            previous round's last). The optimiser starts anew in each round.
        seed: the run's seed.
        start: how the initial volumes are chosen, ``random``, ``diverse`` or ``proxy``.
        budget: no more queries once the labelled volumes cost that much, in units of ``cost``; the
            last query may exceed it, as a cost is known after annotation. None for no limit.
        candidates: a round chooses its query from that many random unlabelled volumes; None for
            all of them.
        repeat_uncertain: labelled volumes stay selectable; one that is acquired again costs nothing
            and is drawn that much more often in training (Nath et al., IEEE TMI 2020, there the
            flag Delete = False).

    Raises:
        ConfigError: if a number is out of range.
    """

    initial: int
    query_size: int
    rounds: int
    steps_per_round: int
    val_interval: int
    val_interval_unit: str
    round_start: str
    seed: int
    start: str = "random"
    budget: float | None = None
    candidates: int | None = None
    repeat_uncertain: bool = False

    def __post_init__(self) -> None:
        for name, number in (
            ("pool.initial", self.initial),
            ("pool.query_size", self.query_size),
            ("pool.rounds", self.rounds),
            ("steps_per_round", self.steps_per_round),
            ("val_interval", self.val_interval),
        ):
            check_whole_number(name, number, at_least=1)
        check_flag("pool.repeat_uncertain", self.repeat_uncertain)
        check_whole_number("seed", self.seed, at_least=0)
        check_choice("round_start", self.round_start, ROUND_STARTS)
        check_choice("val_interval_unit", self.val_interval_unit, INTERVAL_UNITS)
        check_choice("pool.start", self.start, STARTS)
        if self.budget is not None and not (
            type(self.budget) in (int, float) and 0 < self.budget < math.inf
        ):
            raise ConfigError(
                f"pool.budget is {self.budget!r}; it must be null or a number above 0"
            )
        if self.candidates is not None:
            check_whole_number("pool.candidates", self.candidates, at_least=self.query_size)

    def val_interval_steps(self, n_labelled: int, batch_size: int) -> int:
        """Steps between two validations, at most the steps of a round."""
        interval = self.val_interval
        if self.val_interval_unit == "epochs":
            interval *= -(-n_labelled // batch_size)
        return min(interval, self.steps_per_round)


@dataclass(frozen=True)
class Experiment:
    """The parts that the rounds work with.

    Attributes:
        plan: the numbers.
        folder: the run folder; it exists.
        strategy: chooses the queries.
        source: makes the passes that the strategy's statistics are taken from.
        scoring_inferer: runs a network over the windows of a volume while scoring.
        cost: of annotating a case.
        semi_supervised: the second stage of a round; None for none.
        similarity: of candidates to labelled cases by their images, where the strategy asks for it.
        data: serves the loaders.
        oracle: reveals labels.
        make_network: builds an untrained network.
        make_module: wraps a network into a LightningModule; its keywords are the module's.
        make_trainer: builds a Lightning trainer from its per-round settings.
        tracker: records the run.
        settings: the run's settings, flat, for the record.
        tags: what runs are grouped by, for the record.
        checkpoint_every_n_steps: steps of training that are repeated at most after an interruption;
            None for a checkpoint at an interruption alone.
        on_nonfinite: ``stop`` at a training step with a non-finite loss or gradient, or ``skip``.
        hardware: what this process computes on.
        n_pictures: queries to draw a round.
        save_maps: whether to write NIfTI maps of the queries.
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
    make_module: partial[SegmentationModule]
    make_trainer: Callable[..., pl.Trainer]
    tracker: Trackers
    settings: Mapping[str, Any]
    tags: Mapping[str, str]
    checkpoint_every_n_steps: int | None
    on_nonfinite: str
    hardware: str
    n_pictures: int
    save_maps: bool
    similarity: LabelledSimilarity | None = None
    semi_supervised: SemiSupervised | None = None

    def __post_init__(self) -> None:
        if self.checkpoint_every_n_steps is not None:
            check_whole_number(
                "checkpoint_every_n_steps", self.checkpoint_every_n_steps, at_least=1
            )
        check_choice("on_nonfinite", self.on_nonfinite, ON_NON_FINITE)

    @property
    def steps_per_round(self) -> int:
        """Optimiser steps in each round.

        The plan's; in the only round of full data, as many as the network of the other strategies'
        last round has behind it: those of all rounds, where each goes on from the one before.
        """
        continues = self.plan.round_start != "scratch"
        full_data = self.strategy.full_data
        return self.plan.steps_per_round * (self.plan.rounds if full_data and continues else 1)

    def round_folder(self, round_number: int) -> Path:
        """Where a round leaves its files; made if it is not there."""
        folder = self.folder / "rounds" / f"round_{round_number:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
