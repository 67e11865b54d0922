"""Cross-validation of a round: a network a fold, which judges the cases that it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from alseg.active.round import Round
from alseg.active.round_networks import fresh_network, round_training
from alseg.system.distributed import rank
from alseg.system.interruption import interruption
from alseg.training.callbacks.progress import progress_callbacks
from alseg.training.metrics import CaseMetrics
from alseg.training.module import SegmentationModule

log = logging.getLogger(__name__)


def train_folds(this_round: Round) -> None:
    """Train and evaluate the network of each fold; folds that are finished stay as they are."""
    for number in range(1, len(this_round.folds) + 1):
        train_fold(this_round, number)


def train_fold(this_round: Round, number: int) -> None:
    """Train one fold's network on the other folds, and evaluate its last weights on the fold.

    It is trained as the round's network is, from the same first weights, and with draws of its own.
    Only the metrics of its cases stay, in the stage ``fold_1``, ``fold_2``, ...

    Args:
        this_round: the round.
        number: of the fold, from 1.
    """
    experiment, n_steps = this_round.experiment, this_round.experiment.steps_per_round
    name, title = stage_of(number), f"fold {number} of {len(this_round.folds)}"
    training = round_training(this_round, name, title, n_steps)
    if name not in this_round.stages:
        module = experiment.make_module(fresh_network(experiment), experiment.round_recipe)
        parts, draw_seed = this_round.folds[number - 1], this_round.seed(f"fold/{number}")
        experiment.data.start_round(parts, this_round.number, n_steps, draw_seed)
        seed = this_round.seed(f"training/fold/{number}/{rank()}")
        with interruption.delayed():
            result = training.fit(module, experiment.data, seed)
            judge(this_round, module, parts.validation, title)
            this_round.stages.finish(name, metrics=module.case_metrics.rows, **result)
    training.delete()


def judge(
    this_round: Round, module: SegmentationModule, case_ids: Sequence[str], title: str
) -> None:
    """Evaluate a fold's network on the cases of its fold; its ``case_metrics`` are of them then."""
    experiment = this_round.experiment
    title = f"{this_round.title} · {title}"
    trainer = experiment.make_trainer(
        logger=False, enable_checkpointing=False, added_callbacks=progress_callbacks(title)
    )
    in_source = experiment.evaluation.in_source
    volumes = experiment.data.evaluation_volumes(case_ids, in_source=in_source)
    trainer.validate(module, volumes, verbose=False)
    log.info(f"{title} · Dice {module.case_metrics.mean():.3f}")


def cross_validated(this_round: Round) -> CaseMetrics:
    """The metrics of all annotated cases, each by its fold's network; all folds are finished."""
    experiment = this_round.experiment
    cases = CaseMetrics(experiment.data.cache.task.foreground, experiment.evaluation)
    for number in range(1, len(this_round.folds) + 1):
        cases.rows |= this_round.stages[stage_of(number)]["metrics"]
    cases.rows = dict(sorted(cases.rows.items()))
    return cases


def fold_of_case(this_round: Round) -> dict[str, int]:
    """The fold that each annotated case is in, from 1."""
    return {
        case_id: number
        for number, parts in enumerate(this_round.folds, start=1)
        for case_id in parts.validation
    }


def stage_of(number: int) -> str:
    """The stage of a fold, and the name of its weights while it lasts."""
    return f"fold_{number}"
