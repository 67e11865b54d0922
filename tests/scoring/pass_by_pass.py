"""Scores of volumes, pass by pass, to rules that end them."""

from __future__ import annotations

import numpy as np

from alseg.scoring.precision import Precision
from alseg.scoring.racing import Race
from alseg.strategies.strategy import CaseScore


def running_means(increments: np.ndarray) -> np.ndarray:
    """Scores after each pass, [..., T]."""
    return np.cumsum(increments, axis=-1) / np.arange(1, increments.shape[-1] + 1)


def scored(rule: Race | Precision, case_id: str, scores: np.ndarray) -> CaseScore:
    """One volume with these scores after 1, 2, ... passes, as far as the rule wants them."""
    taken = [float(scores[0])]
    while not rule.is_decided(taken):
        taken.append(float(scores[len(taken)]))
    found = CaseScore(case_id, rule.result(taken), n_passes=len(taken), pass_scores=tuple(taken))
    rule.observe(found)
    return found
