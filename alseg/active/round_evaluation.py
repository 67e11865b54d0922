"""The evaluation of a round's network, on validation volumes and on test ones, if there are any."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import pytorch_lightning as pl

from alseg.active.round import Round
from alseg.run.folder import CALIBRATION_FILE, CASES_FILE
from alseg.run.measure import TEST, VALIDATION
from alseg.system.files import write_atomically
from alseg.training.module import SegmentationModule


def evaluate(
    this_round: Round, trainer: pl.Trainer, module: SegmentationModule
) -> dict[str, float]:
    """Evaluate the round's network, if no earlier process has.

    Returns:
        ``val_dice``, ``test_dice_liver``, ...: columns of metrics.csv.
    """
    stages = this_round.stages
    if "evaluation" not in stages:
        started = time.monotonic()
        columns, files = run_evaluation(this_round, trainer, module)
        seconds = round(time.monotonic() - started, 3)
        stages.finish("evaluation", files, seconds=seconds, columns=columns)
    found: dict[str, Any] = stages["evaluation"]["columns"]
    return found


def run_evaluation(
    this_round: Round, trainer: pl.Trainer, module: SegmentationModule
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Evaluate the round's network on validation and test volumes.

    Returns:
        The columns, as for ``evaluate``, and the files that are left in the round's folder:
        ``cases.csv`` (Dice of each case) and, with a test part, ``calibration.csv`` (of its
        volumes).
    """
    data = this_round.experiment.data
    parts = {VALIDATION: trainer.validate}
    if data.splits.test:
        parts[TEST] = trainer.test
    columns: dict[str, float] = {}
    cases = []
    for measure, run in parts.items():
        run(module, datamodule=data, verbose=False)
        columns[measure.column] = module.dice.mean()
        columns |= {measure.of_class(n): value for n, value in module.dice.by_class().items()}
        cases.append(module.dice.table().assign(part=measure.part))
    tables = {CASES_FILE: pd.concat(cases)}
    if TEST in parts:
        tables[CALIBRATION_FILE] = module.calibration.table()
    for name, table in tables.items():
        write_atomically(this_round.folder / name, table.to_csv(index=False))
    return columns, tuple(tables)
