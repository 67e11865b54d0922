"""The numbers of an experiment."""

from __future__ import annotations

from dataclasses import dataclass, field

from alseg.active.initial_pool_from_images import STARTS
from alseg.core.errors import (
    ConfigError,
    check_choice,
    check_flag,
    check_number,
    check_whole_number,
)
from alseg.core.units import PLURALS
from alseg.data.regions import UnitShape

ROUND_STARTS = ("scratch", "continue", "continue_last")
INTERVAL_UNITS = ("steps", "epochs")


@dataclass(frozen=True)
class Plan:
    """The numbers of an experiment.

    Attributes:
        initial: labelled units in the first round.
        query_size: units acquired after each round except the last.
        rounds: number of rounds.
        steps_per_round: optimiser steps in each round.
        val_interval: steps, or passes over the training volumes, between two validations.
        val_interval_unit: ``steps`` or ``epochs``.
        round_start: the weights a round starts from: ``scratch`` (a new network), ``continue``
            (the previous round's best by validation, as in the tutorial) or ``continue_last`` (the
            previous round's last). The optimiser starts again in each round.
        seed: the run's seed.
        label_seed: of what is labelled, as far as it is drawn: the initial units, candidates,
            random queries. Runs of one ``label_seed`` and several seeds repeat the training; with
            ``strategy=random``, on the same labels in all rounds. None for ``seed``.
        start: how the initial volumes are chosen, ``random``, ``diverse`` or ``proxy``; or
            ``labelled`` for those that have a label in the data set, however many ``initial`` says.
        budget: no more queries once the labelled volumes cost that much, in units of ``cost``; the
            last query may exceed it, as a cost is known after annotation. None for no limit.
        candidates: a round chooses its query from that many random unlabelled volumes; None for
            all of them.
        repeat_uncertain: labelled volumes stay selectable; one that is acquired again costs nothing
            and is drawn that much more often in training (Nath et al., IEEE TMI 2020, there the
            flag Delete = False).
        unit_shape: what is annotated in one go, and what ``initial`` and ``query_size`` count.
        max_regions_per_case: patches or slices of one case in all rounds together; None for as many
            as there is room for.

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
    label_seed: int | None = None
    budget: float | None = None
    candidates: int | None = None
    repeat_uncertain: bool = False
    unit_shape: UnitShape = field(default_factory=UnitShape)
    max_regions_per_case: int | None = None

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
        if self.label_seed is not None:
            check_whole_number("pool.label_seed", self.label_seed, at_least=0)
        check_choice("round_start", self.round_start, ROUND_STARTS)
        check_choice("val_interval_unit", self.val_interval_unit, INTERVAL_UNITS)
        check_choice("pool.start", self.start, STARTS)
        check_number("pool.budget", self.budget, above=0, or_null=True)
        if self.candidates is not None:
            at_least = 1 if self.unit_shape.is_region else self.query_size
            check_whole_number("pool.candidates", self.candidates, at_least=at_least)
        self._check_regions()

    def _check_regions(self) -> None:
        """Check what is there for regions only, or for whole volumes only."""
        if self.max_regions_per_case is not None:
            check_whole_number("pool.max_regions_per_case", self.max_regions_per_case, at_least=1)
            if not self.unit_shape.is_region:
                raise ConfigError("pool.max_regions_per_case is for pool.unit=patch or slice")
        if not self.unit_shape.is_region:
            return
        with_unit = f"with pool.unit={self.unit_shape.unit}"
        if self.repeat_uncertain:
            raise ConfigError(
                f"pool.repeat_uncertain is for whole volumes: {with_unit} no region is asked for "
                "twice"
            )
        if self.start != "random":
            raise ConfigError(
                f"pool.start={self.start} chooses whole volumes; {with_unit} use pool.start=random"
            )

    @property
    def seed_of_labels(self) -> int:
        """The seed of what is labelled: ``label_seed``, or the run's."""
        return self.seed if self.label_seed is None else self.label_seed

    @property
    def units(self) -> str:
        """What ``initial`` and ``query_size`` count, in the plural."""
        return PLURALS[self.unit_shape.unit]

    def val_interval_steps(self, n_volumes: int, batch_size: int) -> int:
        """Steps between two validations, at most the steps of a round."""
        interval = self.val_interval
        if self.val_interval_unit == "epochs":
            interval *= -(-n_volumes // batch_size)
        return min(interval, self.steps_per_round)
