"""How many labelled volumes a target Dice will need: learning-curve models fitted to the rounds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import OptimizeWarning, curve_fit

MIN_ROUNDS = 4
MAX_EXTRAPOLATION = 10.0  # times the largest labelled count
N_RESAMPLES = 200
MOST_MISS = 0.2  # of the range of the mean Dice
Array = np.ndarray


@dataclass(frozen=True)
class CurveModel:
    """A learning-curve model Dice = f(n; parameters) of the labelled count n.

    Attributes:
        name: how it is called.
        formula: as people write it.
        function: (n, *parameters) -> Dice; does not fall with n within the bounds.
        inverse: (Dice, *parameters) -> n; infinite for a Dice that is not reached.
        start: first guess of the parameters from counts and Dice.
        bounds: lower and upper bounds of the parameters.
    """

    name: str
    formula: str
    function: Callable[..., Array]
    inverse: Callable[..., float]
    start: Callable[[Array, Array], list[float]]
    bounds: tuple[list[float], list[float]]


def _power(n: Array, a: float, b: float, c: float) -> Array:
    return a - b * np.power(n, -c)


def _power_inverse(dice: float, a: float, b: float, c: float) -> float:
    if dice >= a or b <= 0:
        return math.inf
    log_n = (math.log(b) - math.log(a - dice)) / c
    return math.exp(log_n) if log_n < 700 else math.inf


def _exponential(n: Array, a: float, b: float, c: float) -> Array:
    return a - b * np.exp(-n / c)


def _exponential_inverse(dice: float, a: float, b: float, c: float) -> float:
    return math.inf if dice >= a or b <= 0 else c * math.log(b / (a - dice))


def _logarithmic(n: Array, a: float, b: float) -> Array:
    return a + b * np.log(n)


def _logarithmic_inverse(dice: float, a: float, b: float) -> float:
    # Dice above 1 does not exist, whatever the logarithm says
    if dice > 1 or b <= 0:
        return math.inf
    log_n = (dice - a) / b
    return math.exp(log_n) if log_n < 700 else math.inf


def _plateau(dice: Array) -> float:
    return float(min(0.999, dice.max() + 0.02))


# Hestness et al. (arXiv:1712.00409) and Viering and Loog (TPAMI 2023, "The shape of learning
# curves") compare these forms. An asymptote above 1 is no Dice, hence a <= 1.
MODELS = (
    CurveModel(
        "power law",
        "a - b n^(-c)",
        _power,
        _power_inverse,
        lambda n, d: [_plateau(d), max(_plateau(d) - d[0], 1e-3) * n[0] ** 0.5, 0.5],
        ([0.0, 0.0, 0.01], [1.0, 1e3, 5.0]),
    ),
    CurveModel(
        "exponential",
        "a - b exp(-n/c)",
        _exponential,
        _exponential_inverse,
        lambda n, d: [_plateau(d), max(_plateau(d) - d[0], 1e-3), float(n.mean())],
        ([0.0, 0.0, 1e-2], [1.0, 1e3, 1e5]),
    ),
    CurveModel(
        "logarithmic",
        "a + b ln(n)",
        _logarithmic,
        _logarithmic_inverse,
        lambda n, d: [float(d[0]), 0.05],
        ([-10.0, 0.0], [1.0, 1.0]),
    ),
)


@dataclass(frozen=True)
class Fit:
    """A model with its parameters."""

    model: CurveModel
    parameters: tuple[float, ...]

    def predict(self, n: Array | Sequence[float] | float) -> Array:
        """The Dice at labelled counts."""
        return self.model.function(np.asarray(n, dtype=np.float64), *self.parameters)

    def labels_for(self, dice: float) -> float:
        """The labelled count at which a Dice is reached; infinite if never."""
        return self.model.inverse(dice, *self.parameters)


def fit_model(
    model: CurveModel, labelled: Array, dice: Array, start: Sequence[float] | None = None
) -> Fit | None:
    """Bounded least squares; None if it does not converge or has fewer points than parameters."""
    n, d = np.asarray(labelled, dtype=np.float64), np.asarray(dice, dtype=np.float64)
    if len(n) < len(model.bounds[0]):
        return None
    guess = np.clip(model.start(n, d) if start is None else start, *model.bounds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # no covariance needed
            parameters, _ = curve_fit(
                model.function, n, d, p0=guess, bounds=model.bounds, max_nfev=2000
            )
    except RuntimeError:  # no convergence
        return None
    return Fit(model, tuple(float(p) for p in parameters))


def choose_fit(labelled: Array, dice: Array) -> Fit | None:
    """The model that predicts the last round best from the rounds before it, fitted to all rounds.

    Rejected: AICc. With 4 to 6 rounds its correction term is infinite or decides everything.

    Args:
        labelled: the labelled counts, of all seeds; increasing within a seed.
        dice: the Dice at each.
    """
    last = labelled.max()
    before = labelled < last
    errors = []
    for model in MODELS:
        fit = fit_model(model, labelled[before], dice[before])
        if fit is not None:
            error = abs(float(fit.predict(last)) - float(dice[~before].mean()))
            errors.append((round(error, 9), MODELS.index(model)))  # ties: the first model
    for _, index in sorted(errors):
        fit = fit_model(MODELS[index], labelled, dice)
        if fit is not None:
            return fit
    return None


def miss(fit: Fit, mean: pd.Series) -> float:
    """How far a fitted curve passes by the points, as a share of the range of the points.

    The root mean square of mean(n) - fit(n) over the labelled counts n, divided by the largest
    minus the smallest mean; 0 for a curve through all of them, and for points that are all alike.
    Of Dice that only scatters it is about 0.3; a fit that misses by more than ``MOST_MISS``
    forecasts nothing.

    Args:
        fit: the fitted curve.
        mean: the mean Dice over seeds, by labelled count.
    """
    spread = float(mean.max() - mean.min())
    residuals = mean.to_numpy() - fit.predict(mean.index.to_numpy())
    return float(np.sqrt(np.mean(residuals**2))) / spread if spread > 0 else 0.0


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


def forecast(curves: pd.DataFrame, target: float, value: str = "dice") -> Forecast:
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
        said = f"{strategy}: Dice {target:.3f} is reached with {reached[0]:.0f} labelled volumes."
        return Forecast(strategy, target, said, int(reached[0]), fit=fit)
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
            f"beyond the {largest:.0f} volumes labelled so far.",
            fit,
        )
    resampled = _resampled_volumes(rows, fit, target, value)
    if np.isinf(resampled).mean() > 0.5:
        return declined(
            f"no forecast for Dice {target:.3f}; more than half of the resampled curves never "
            "reach it.",
            fit,
        )
    low, high, span = _interval_of(resampled, MAX_EXTRAPOLATION * largest)
    said = (
        f"{strategy}: about {math.ceil(volumes)} labelled volumes for Dice {target:.3f} ({span})."
    )
    return Forecast(strategy, target, said, volumes, low, high, fit)


def _interval_of(resampled: Array, most: float) -> tuple[float, float, str]:
    """The 95% interval of resampled volumes, open above ``most``, and how it is written."""
    # method: no interpolation between a number and infinity
    low, high = np.quantile(resampled, (0.025, 0.975), method="inverted_cdf")
    if high > most:
        return float(low), math.inf, f"95% interval {low:.0f} to no upper limit"
    return float(low), float(high), f"95% interval {low:.0f} to {high:.0f}"


def _resampled_volumes(rows: pd.DataFrame, fit: Fit, target: float, value: str) -> Array:
    """The volumes needed in each bootstrap resample; infinite where the target is not reached."""
    rng = np.random.default_rng(0)
    labelled, dice = rows["labelled"].to_numpy(dtype=np.float64), rows[value].to_numpy()
    of_seed = [np.flatnonzero(rows["seed"] == seed) for seed in rows["seed"].unique()]
    fitted = fit.predict(labelled)
    # p parameters have taken up some of the spread
    n_free = max(len(dice) - len(fit.parameters), 1)
    residuals = (dice - fitted) * math.sqrt(len(dice) / n_free)
    needed = []
    for _ in range(N_RESAMPLES):
        if len(of_seed) >= 3:
            drawn = rng.integers(len(of_seed), size=len(of_seed))
            chosen = np.concatenate([of_seed[index] for index in drawn])
            n, d = labelled[chosen], dice[chosen]
        else:
            n, d = labelled, fitted + rng.choice(residuals, len(residuals))
        again = fit_model(fit.model, n, d, start=fit.parameters)
        needed.append(again.labels_for(target) if again else math.inf)
    return np.array(needed)


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
