"""The evaluation of a round's network, on validation volumes and on test ones, if there are any."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import pytorch_lightning as pl

from alseg.active.fold_training import cross_validated, fold_of_case
from alseg.active.round import Round
from alseg.run.folder import CALIBRATION_FILE, CASES_FILE
from alseg.run.measure import CROSS, FOLDS, TEST, VALIDATION, Measure
from alseg.run.stages import EVALUATION
from alseg.system.files import write_atomically
from alseg.training.metrics import CaseDice
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
        ``cases.csv`` (Dice of each case) and, with a test part, ``calibration.csv`` (of its
        volumes).
    """
    data, columns = this_round.experiment.data, dict[str, float]()
    if this_round.folds:
        columns[FOLDS] = len(this_round.folds)
        columns |= dice_columns(CROSS, dice := cross_validated(this_round))
        cases = case_rows(CROSS, dice)
        cases["fold"] = cases["case_id"].map(fold_of_case(this_round)).astype("Int64")
    else:
        trainer.validate(module, datamodule=data, verbose=False)
        columns |= dice_columns(VALIDATION, module.dice)
        cases = case_rows(VALIDATION, module.dice)
    tables = {CASES_FILE: cases}
    if data.splits.test:
        trainer.test(module, datamodule=data, verbose=False)
        columns |= dice_columns(TEST, module.dice)
        tables[CASES_FILE] = pd.concat([cases, case_rows(TEST, module.dice)])
        tables[CALIBRATION_FILE] = module.calibration.table()
    for name, table in tables.items():
        write_atomically(this_round.folder / name, table.to_csv(index=False))
    return columns, tuple(tables)


def dice_columns(measure: Measure, dice: CaseDice) -> dict[str, float]:
    """The columns of metrics.csv: mean Dice, and the Dice of each class."""
    by_class = {measure.of_class(name): value for name, value in dice.by_class().items()}
    return {measure.column: dice.mean()} | by_class


def case_rows(measure: Measure, dice: CaseDice) -> pd.DataFrame:
    """The rows of ``cases.csv``."""
    return dice.table().assign(part=measure.part)
