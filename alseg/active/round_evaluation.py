"""The evaluation of a round on validation volumes, and on test ones if there are any."""

from __future__ import annotations

import logging
import time
from typing import Any

import pandas as pd
import pytorch_lightning as pl

from alseg.active.fold_training import cross_validated, fold_of_case
from alseg.active.round import Round
from alseg.core.counts import counted
from alseg.core.metric_names import DICE, HD95
from alseg.run.folder import CALIBRATION_FILE, CASES_FILE
from alseg.run.measure import CROSS, FOLDS, TEST, VALIDATION, Measure
from alseg.run.stages import EVALUATION
from alseg.system.files import write_atomically
from alseg.training.metrics import CaseMetrics
from alseg.training.module import SegmentationModule

log = logging.getLogger(__name__)

UNLEARNED_DICE = 0.05  # a network that has more in no validation case has not learned the class


def evaluate(
    this_round: Round, trainer: pl.Trainer, module: SegmentationModule
) -> dict[str, float]:
    """Evaluate what the round has trained, if no earlier process has.

    Returns:
        ``val_dice``, ``test_dice_liver``, ...: columns of metrics.csv.
    """
    stages = this_round.stages
    if EVALUATION not in stages:
        started = time.monotonic()
        columns, files = run_evaluation(this_round, trainer, module)
        seconds = round(time.monotonic() - started, 3)
        stages.finish(EVALUATION, files, seconds=seconds, columns=columns)
    found: dict[str, Any] = stages[EVALUATION]["columns"]
    return found


def run_evaluation(
    this_round: Round, trainer: pl.Trainer, module: SegmentationModule
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Evaluate the module on validation and test volumes.

    With cross-validation the folds' networks have done the former; the cases have their ``fold``.

    Returns:
        The columns, as for ``evaluate``, and the files that are left in the round's folder:
        ``cases.csv`` (the metrics of each case) and, with a test part, ``calibration.csv`` (of its
        volumes, on the preprocessed grid).
    """
    data, columns = this_round.experiment.data, dict[str, float]()
    in_source = this_round.experiment.evaluation.in_source
    if this_round.folds:
        columns[FOLDS] = len(this_round.folds)
        measure, validation = CROSS, cross_validated(this_round)
    else:
        volumes = data.evaluation_volumes(this_round.parts.validation, in_source=in_source)
        trainer.validate(module, volumes, verbose=False)
        measure, validation = VALIDATION, module.case_metrics
    columns |= metric_columns(measure, validation)
    cases = case_rows(measure, validation)
    if this_round.folds:
        cases["fold"] = cases["case_id"].map(fold_of_case(this_round)).astype("Int64")
    warn_of_unlearned_classes(this_round, validation)
    tables = {CASES_FILE: cases}
    if data.splits.test:
        volumes = data.evaluation_volumes(data.splits.test, in_source=in_source)
        trainer.test(module, volumes, verbose=False)
        columns |= metric_columns(TEST, module.case_metrics)
        tables[CASES_FILE] = pd.concat([cases, case_rows(TEST, module.case_metrics)])
        tables[CALIBRATION_FILE] = module.calibration.table()
    for name, table in tables.items():
        write_atomically(this_round.folder / name, table.to_csv(index=False))
    return columns, tuple(tables)


def warn_of_unlearned_classes(this_round: Round, validation: CaseMetrics) -> None:
    """Say which classes the network finds in no validation case though labelled cases hold them.

    A class that is in no labelled case is for the strategy to find, and nothing is said of it.
    """
    cases = validation.table()
    best = {name: cases[f"{DICE}_{name}"].max() for name in validation.classes}
    if not any(dice < UNLEARNED_DICE for dice in best.values()):
        return
    labelled = this_round.parts.training
    held = this_round.experiment.data.foreground_classes(labelled).sum(axis=0)
    for (name, dice), n_holding in zip(best.items(), held, strict=True):
        if dice < UNLEARNED_DICE and n_holding:
            log.warning(
                f"{this_round.title} · {name} is found in no validation case (Dice at "
                f"most {dice:.3f}), though it is in {n_holding} of "
                f"{counted(len(labelled), 'labelled training case')}; more steps_per_round or "
                "another seed may help"
            )


def metric_columns(measure: Measure, cases: CaseMetrics) -> dict[str, float]:
    """The columns of metrics.csv: the mean of each metric, and that of each class."""
    columns: dict[str, float] = {}
    for metric in cases.evaluation.metrics:
        columns[measure.of_metric(metric)] = cases.mean(metric)
        by_class = cases.by_class(metric).items()
        columns |= {measure.of_metric(metric, name): value for name, value in by_class}
    if HD95 in cases.evaluation.metrics:
        columns[measure.undefined_hd95] = cases.n_undefined_hd95
    return columns


def case_rows(measure: Measure, cases: CaseMetrics) -> pd.DataFrame:
    """The rows of ``cases.csv``."""
    return cases.table().assign(part=measure.part)
