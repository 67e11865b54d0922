"""What one round works on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from alseg.active.acquisition_callback import candidate_cases
from alseg.active.experiment import Experiment
from alseg.active.plan import Plan
from alseg.active.pseudo_labels import SemiSupervised
from alseg.core.pool import Pool
from alseg.core.seeding import seed_for
from alseg.data.splits import Parts
from alseg.run.score_journal import ScoreFile
from alseg.run.stages import Stages
from alseg.run.state import RunState
from alseg.system.distributed import rank, wait_for_all
from alseg.system.files import checksum_of, clean_temporaries
from alseg.training.fit import BEST

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """One round, as its stages see it.

    Attributes:
        experiment: the parts.
        pool: the labelled and the unlabelled cases that it begins with.
        number: from 1.
        folder: where it leaves its files; it exists.
        stages: those that are finished, by this process or an earlier one.
        candidates: the cases that it chooses its query from.
        cost: of the labelled units.
        is_last: whether no query follows it.
    """

    experiment: Experiment
    pool: Pool
    number: int
    folder: Path
    stages: Stages
    candidates: tuple[str, ...]
    cost: float
    is_last: bool

    @classmethod
    def after(cls, experiment: Experiment, state: RunState) -> Round:
        """The round that follows a state; what an earlier process has left of it counts."""
        plan, pool, number = experiment.plan, state.pool, state.finished_rounds + 1
        folder = experiment.round_folder(number)
        candidates = round_candidates(experiment, pool, number)
        asks = is_to_ask(plan, number, state.cost) and has_more(experiment, pool, candidates)
        return cls(
            experiment=experiment,
            pool=pool,
            number=number,
            folder=folder,
            stages=intact_stages(folder),
            candidates=candidates,
            cost=state.cost,
            is_last=not asks,
        )

    @property
    def parts(self) -> Parts:
        """Its labelled cases, each once, by what they are for."""
        return self.experiment.data.splits.parts(self.pool.labelled)

    @property
    def parts_with_repeats(self) -> Parts:
        """The same, with those that were acquired again as often as they were."""
        return self.experiment.data.splits.parts(self.pool.labelled_with_repeats)

    @property
    def folds(self) -> tuple[Parts, ...]:
        """What the network of each fold trains with and judges; none without cross-validation."""
        cross_validation = self.experiment.cross_validation
        if cross_validation is None:
            return ()
        return cross_validation.parts(self.pool.labelled_with_repeats)

    @property
    def judged(self) -> tuple[str, ...]:
        """Its labelled cases that validation measures: those of the part, or of all folds."""
        if self.experiment.cross_validation is None:
            return self.parts.validation
        return self.pool.labelled

    @property
    def title(self) -> str:
        """What progress bars call it."""
        return f"round {self.number}/{self.experiment.plan.rounds}"

    @property
    def needs_prediction(self) -> bool:
        """Whether its query needs the network to look at the candidates."""
        return self.experiment.needs_prediction and not self.is_last

    @property
    def semi_supervised(self) -> SemiSupervised | None:
        """The second stage of its training; None without one, or without unlabelled volumes."""
        return self.experiment.semi_supervised if self.pool.unlabelled else None

    @cached_property  # it reads the whole checkpoint
    def score_file(self) -> ScoreFile:
        """Where its scores are kept while they come in; there once its network is trained."""
        return ScoreFile(self.folder, checksum_of(self.folder / f"{BEST}.ckpt"))

    def seed(self, purpose: str) -> int:
        """The seed of one of its random draws, see ``seed_for``."""
        return seed_for(self.experiment.plan.seed, self.number, purpose)


def round_candidates(experiment: Experiment, pool: Pool, round_number: int) -> tuple[str, ...]:
    """The cases that a round chooses its query from."""
    plan = experiment.plan
    again = experiment.data.splits.parts(pool.labelled).training if plan.repeat_uncertain else ()
    selectable = (*pool.unlabelled, *again)
    if experiment.regions is not None:
        selectable = experiment.regions.selectable(pool)
    return candidate_cases(selectable, plan.candidates, plan.seed_of_labels, round_number)


def is_to_ask(plan: Plan, round_number: int, cost: float) -> bool:
    """Whether a query is to follow a round, if there is anything left to ask for.

    Args:
        plan: of the run.
        round_number: the round.
        cost: of the units that are labelled in it.
    """
    return round_number < plan.rounds and not budget_is_spent(plan, cost)


def has_more(experiment: Experiment, pool: Pool, candidates: Collection[str]) -> bool:
    """Whether anything is left to ask for: an unlabelled volume, or room for another region."""
    return bool(pool.unlabelled if experiment.regions is None else candidates)


def budget_is_spent(plan: Plan, cost: float) -> bool:
    """Whether labelled volumes of this cost leave nothing for another query."""
    return plan.budget is not None and cost >= plan.budget


def intact_stages(folder: Path) -> Stages:
    """The finished stages of a round; none, and an empty folder, if its training is damaged."""
    clean_temporaries(folder)
    stages = Stages(folder)
    if stages.path.is_file() and "training" not in stages:
        log.warning(f"the round starts again: {folder}")
        start_again(folder)
        return Stages(folder)
    return stages


def start_again(folder: Path) -> None:
    """Empty the folder of a round."""
    wait_for_all()  # all have looked at it
    if rank() == 0:
        shutil.rmtree(folder)
        folder.mkdir()
    wait_for_all()
