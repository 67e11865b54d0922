"""The area under a budget curve: what a run is worth in one number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def area_under_budget_curve(labelled: Sequence[float], dice: Sequence[float]) -> float:
    """Area under Dice against the number of labelled volumes, divided by the range of the budget.

    The trapezoidal rule; a mean Dice over the budget, in [0, 1]. A single point is its own mean.

    Args:
        labelled: numbers of labelled volumes (or annotation costs) that never fall; rounds that
            labelled nothing new share one.
        dice: the Dice at each of them; rounds without one (NaN) are left out.

    Raises:
        ValueError: if the lengths differ, there is no point, or the numbers fall.
    """
    if len(labelled) != len(dice) or not len(labelled):
        raise ValueError(f"got {len(labelled)} budgets and {len(dice)} Dice values")
    if np.any(np.diff(labelled) < 0):
        raise ValueError(f"the budgets must not fall, got {list(labelled)}")
    known = ~np.isnan(np.asarray(dice, dtype=np.float64))
    if not known.any():
        return float("nan")
    counts, values = np.asarray(labelled)[known], np.asarray(dice)[known]
    if counts[-1] == counts[0]:
        return float(values[-1])
    return float(np.trapezoid(values, counts) / (counts[-1] - counts[0]))
