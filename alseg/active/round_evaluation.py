"""The evaluation of a round's network, on validation and test volumes."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import pytorch_lightning as pl

from alseg.active.round import Round
from alseg.run.folder import CALIBRATION_FILE, CASES_FILE
from alseg.system.files import write_atomically
from alseg.training.module import SegmentationModule

EVALUATED = (CASES_FILE, CALIBRATION_FILE)  # what an evaluation leaves


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
        columns = run_evaluation(this_round, trainer, module)
        seconds = round(time.monotonic() - started, 3)
        stages.finish("evaluation", EVALUATED, seconds=seconds, columns=columns)
    found: dict[str, Any] = stages["evaluation"]["columns"]
    return found


def run_evaluation(
    this_round: Round, trainer: pl.Trainer, module: SegmentationModule
) -> dict[str, float]:
    """Evaluate the round's network on validation and test volumes.

    Returns:
        As ``evaluate``. ``cases.csv`` (Dice of each case) and ``calibration.csv`` (of the test
        volumes) are left in the round's folder.
    """
    data = this_round.experiment.data
    columns: dict[str, float] = {}
    cases = []
    for part, run in (("val", trainer.validate), ("test", trainer.test)):
        run(module, datamodule=data, verbose=False)
        columns |= {f"{part}_dice": module.dice.mean()}
        columns |= {f"{part}_dice_{name}": value for name, value in module.dice.by_class().items()}
        cases.append(module.dice.table().assign(part=part))
    tables = (pd.concat(cases), module.calibration.table())
    for name, table in zip(EVALUATED, tables, strict=True):
        write_atomically(this_round.folder / name, table.to_csv(index=False))
    return columns
