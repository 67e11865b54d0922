"""Scores of volumes, pass by pass, to rules that end them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from alseg.scoring.precision import Precision
from alseg.scoring.racing import Race
from alseg.strategies.strategy import CaseScore


def running_means(increments: np.ndarray) -> np.ndarray:
    """Scores after each pass, [..., T]."""
    return np.cumsum(increments, axis=-1) / np.arange(1, increments.shape[-1] + 1)


def scored(
    rule: Race | Precision,
    case_id: str,
    scores: np.ndarray,
    expected: float | None = None,
    cost: float = 0.5,
) -> CaseScore:
    """One volume with these scores after 1, 2, ... passes, as far as the rule wants them.

    Args:
        rule: ends its passes.
        case_id: its name.
        scores: after each pass, [T].
        expected: by a deterministic pass.
        cost: of a pass, in plain passes.
    """
    n_taken = 1
    while not rule.is_decided(found := taken(case_id, scores[:n_taken], expected, cost)):
        n_taken += 1
    found = replace(found, score=rule.result(found))
    rule.observe(found)
    return found


def taken(case_id: str, scores: np.ndarray, expected: float | None, cost: float) -> CaseScore:
    """A volume after some passes."""
    values = tuple(scores.tolist())
    return CaseScore(
        case_id,
        values[-1],
        n_passes=len(values),
        pass_scores=values,
        plain_passes=1 + cost * len(values),
        expected=expected,
    )
