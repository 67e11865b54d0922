"""The evaluation of a round's network, on validation volumes and on test ones, if there are any."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import pytorch_lightning as pl

from alseg.active.fold_training import cross_validated, fold_of_case
from alseg.active.round import Round
from alseg.core.metric_names import HD95
from alseg.run.folder import CALIBRATION_FILE, CASES_FILE
from alseg.run.measure import CROSS, FOLDS, TEST, VALIDATION, Measure
from alseg.run.stages import EVALUATION
from alseg.system.files import write_atomically
from alseg.training.metrics import CaseMetrics
from alseg.training.module import SegmentationModule


def evaluate(
    this_round: Round, trainer: pl.Trainer, module: SegmentationModule
) -> dict[str, float]:
    """Evaluate the round's network, if no earlier process has.

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
    """Evaluate the round's network on validation and test volumes.

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
        columns |= metric_columns(CROSS, found := cross_validated(this_round))
        cases = case_rows(CROSS, found)
        cases["fold"] = cases["case_id"].map(fold_of_case(this_round)).astype("Int64")
    else:
        volumes = data.evaluation_volumes(this_round.parts.validation, in_source=in_source)
        trainer.validate(module, volumes, verbose=False)
        columns |= metric_columns(VALIDATION, module.case_metrics)
        cases = case_rows(VALIDATION, module.case_metrics)
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
