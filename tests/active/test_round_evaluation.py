"""What the evaluation of a round tells."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alseg.active.round_evaluation import warn_of_unlearned_classes
from alseg.training.metrics import CaseMetrics


def told(caplog: pytest.LogCaptureFixture, rows: list[list[float]], held: list[list[bool]]) -> str:
    """What is told of validation rows (Dice of liver, tumour) and labelled cases' classes."""
    metrics = CaseMetrics(("liver", "tumour"))
    metrics.rows = {f"v{number}": row for number, row in enumerate(rows)}
    this_round: Any = SimpleNamespace(
        title="round 1/3",
        parts=SimpleNamespace(training=tuple(f"c{number}" for number in range(len(held)))),
        experiment=SimpleNamespace(
            data=SimpleNamespace(foreground_classes=lambda cases: np.array(held, dtype=bool))
        ),
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_of_unlearned_classes(this_round, metrics)
    return caplog.text


def test_a_class_that_is_labelled_and_never_found_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    held = [[True, True], [True, False], [True, False]]
    text = told(caplog, [[0.8, 0.004], [0.7, 0.0], [0.7, np.nan]], held)
    assert "round 1/3 · tumour is found in no validation case (Dice at most 0.004)" in text
    assert "it is in 1 of 3 labelled training cases" in text
    assert "liver" not in text
    assert told(caplog, [[0.8, 0.0], [0.7, 0.1]], held) == ""  # it is found in one


def test_nothing_is_told_of_a_class_that_nobody_has_labelled_or_validation_lacks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert told(caplog, [[0.8, 0.0]], [[True, False], [True, False]]) == ""
    assert told(caplog, [[0.8, np.nan]], [[True, True]]) == ""
    assert told(caplog, [[0.8, 0.0]], [[True, True]]) != ""
