"""How many labelled volumes a target Dice will need, by the rounds so far."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from alseg.curves.models import (
    MIN_ROUNDS,
    MOST_MISS,
    Array,
    Fit,
    choose_fit,
    miss,
    resampled_fits,
)

MAX_EXTRAPOLATION = 10.0  # times the largest labelled count


@dataclass(frozen=True)
class Forecast:
    """What a learning curve says about a target.

    Attributes:
        strategy: whose curve it is.
        target: the target Dice.
        statement: one plain sentence, also where there is no number.
        volumes: labelled volumes needed; None if the forecast declines.
        low: lower end of the 95% interval; NaN where there is nothing to forecast.
        high: upper end; may be infinite.
        fit: the chosen model; None if none was fitted, or it misses the points.
    """

    strategy: str
    target: float
    statement: str
    volumes: float | None = None
    low: float = math.nan
    high: float = math.nan
    fit: Fit | None = None


def forecast(
    curves: pd.DataFrame, target: float, value: str = "dice", label: str = "labelled volumes"
) -> Forecast:
    """Forecast the labelled volumes that one strategy needs for a target Dice.

    The interval resamples seeds (3 seeds or more) or else residuals, ``N_RESAMPLES`` times, and
    refits the chosen model; 2.5 and 97.5 percentiles (Efron, Ann. Statist. 7, 1979).
    It declines with fewer than ``MIN_ROUNDS`` rounds, a fitted curve that misses the points (see
    ``miss``), a target that the curve does not reach, or one beyond ``MAX_EXTRAPOLATION`` times the
    labels so far. A target that the mean has reached needs no forecast.

    Args:
        curves: the rounds of one strategy: strategy, seed, labelled and the Dice column.
        target: in (0, 1].
        value: the Dice column.
        label: what ``labelled`` counts.
    """
    strategy = str(curves["strategy"].iloc[0])
    rows = curves.dropna(subset=[value]).sort_values(["labelled", "seed"])
    mean = rows.groupby("labelled")[value].mean()

    def declined(reason: str, fit: Fit | None = None) -> Forecast:
        return Forecast(strategy, target, f"{strategy}: {reason}", fit=fit)

    reached = mean.index[mean >= target]
    if len(mean) < MIN_ROUNDS and not len(reached):
        return declined(f"no forecast from {len(mean)} rounds; it takes at least {MIN_ROUNDS}.")
    labelled, dice = rows["labelled"].to_numpy(dtype=np.float64), rows[value].to_numpy()
    fit = choose_fit(labelled, dice) if len(mean) >= MIN_ROUNDS else None
    missed = 0.0 if fit is None else miss(fit, mean)
    fit = None if missed > MOST_MISS else fit
    if len(reached):
        statement = f"{strategy}: Dice {target:.3f} is reached with {reached[0]:.6g} {label}."
        return Forecast(strategy, target, statement, float(reached[0]), fit=fit)
    if missed > MOST_MISS:
        return declined(
            f"no forecast for Dice {target:.3f}; the fitted curve misses the rounds so far by "
            f"{missed:.0%} of their range of Dice."
        )
    if fit is None:
        return declined("no forecast, as no learning-curve model fits the rounds so far.")
    volumes = fit.labels_for(target)
    largest = float(labelled.max())
    if math.isinf(volumes):
        return declined(
            f"no forecast for Dice {target:.3f}; the curve fitted to the rounds so far levels off "
            "below it, so they do not show how it gets there.",
            fit,
        )
    if volumes > MAX_EXTRAPOLATION * largest:
        return declined(
            f"no forecast for Dice {target:.3f}; it lies more than {MAX_EXTRAPOLATION:.0f} times "
            f"beyond the {largest:.6g} {label} so far.",
            fit,
        )
    again = resampled_fits(fit, labelled, dice, rows["seed"].to_numpy())
    resampled = np.array([math.inf if f is None else f.labels_for(target) for f in again])
    if np.isinf(resampled).mean() > 0.5:
        return declined(
            f"no forecast for Dice {target:.3f}; more than half of the resampled curves never "
            "reach it.",
            fit,
        )
    low, high, span = _interval_of(resampled, MAX_EXTRAPOLATION * largest)
    statement = f"{strategy}: about {amount(volumes)} {label} for Dice {target:.3f} ({span})."
    return Forecast(strategy, target, statement, volumes, low, high, fit)


def amount(volumes: float) -> str:
    """A number of volumes, none of them in part; a share of one with two digits."""
    return f"{math.ceil(volumes)}" if volumes > 1 else f"{volumes:.2g}"


def bound(volumes: float) -> str:
    """An end of an interval of volumes, rounded; a share of one with two digits."""
    return f"{volumes:.0f}" if volumes > 1 else f"{volumes:.2g}"


def _interval_of(resampled: Array, most: float) -> tuple[float, float, str]:
    """The 95% interval of resampled volumes, open above ``most``, and how it is written."""
    # method: no interpolation between a number and infinity
    low, high = np.quantile(resampled, (0.025, 0.975), method="inverted_cdf")
    if high > most:
        return float(low), math.inf, f"95% interval {bound(low)} to no upper limit"
    return float(low), float(high), f"95% interval {bound(low)} to {bound(high)}"


def back_test(curves: pd.DataFrame, value: str = "dice") -> pd.DataFrame:
    """How wrong the forecast would have been: fit the first k rounds, predict the last one's Dice.

    Fits that miss their points are left out, as in the forecast.

    Columns: ``strategy``, ``rounds_used`` (k, from ``MIN_ROUNDS``), ``rounds_ahead``, ``model``,
    ``predicted``, ``actual`` (mean over seeds), ``error`` (absolute), ``error_no_change`` (of
    carrying round k's Dice forward, which a model has to beat to be of use).
    """
    rows = []
    for strategy, group in curves.groupby("strategy"):
        counts = np.sort(group["labelled"].unique())
        mean = group.groupby("labelled")[value].mean()
        for k in range(MIN_ROUNDS, len(counts)):
            known = group[group["labelled"].isin(counts[:k])]
            fit = choose_fit(known["labelled"].to_numpy(dtype=np.float64), known[value].to_numpy())
            if fit is None or miss(fit, mean.iloc[:k]) > MOST_MISS:
                continue
            predicted, actual = float(fit.predict(counts[-1])), float(mean.iloc[-1])
            rows.append(
                {
                    "strategy": strategy,
                    "rounds_used": k,
                    "rounds_ahead": len(counts) - k,
                    "model": fit.model.name,
                    "predicted": predicted,
                    "actual": actual,
                    "error": abs(predicted - actual),
                    "error_no_change": abs(float(mean.iloc[k - 1]) - actual),
                }
            )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class ExpectedGain:
    """What the next labels are expected to bring.

    Attributes:
        dice: the rise of the fitted curve.
        low: lower end of its 95% interval.
        high: upper end.
    """

    dice: float
    low: float
    high: float


def expected_gain(labelled: Array, dice: Array, n_more: int) -> ExpectedGain | None:
    """What ``n_more`` labels are expected to bring to one run, by the curve fitted to its rounds.

    The interval resamples residuals, see ``resampled_fits``; 2.5 and 97.5 percentiles. It covers
    neither the choice of the curve nor the noise of the next round's own training.

    Args:
        labelled: the labelled counts of the rounds, shape [n].
        dice: the Dice at each, shape [n].
        n_more: how many labels more than the largest count.

    Returns:
        None with fewer than ``MIN_ROUNDS`` different counts, or a fit that misses the rounds.
    """
    mean = pd.Series(dice).groupby(np.asarray(labelled)).mean()
    fit = choose_fit(labelled, dice) if len(mean) >= MIN_ROUNDS else None
    if fit is None or miss(fit, mean) > MOST_MISS:
        return None
    now = float(np.max(labelled))

    def rise(of: Fit) -> float:
        return float(of.predict(now + n_more) - of.predict(now))

    again = resampled_fits(fit, labelled, dice, np.zeros(len(dice)))
    low, high = np.quantile([rise(each) for each in again if each is not None], (0.025, 0.975))
    return ExpectedGain(rise(fit), float(low), float(high))
