"""Models of learning curves, fitted to the rounds of one or several runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import OptimizeWarning, curve_fit

MIN_ROUNDS = 4
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
    """A model with its parameters.

    Attributes:
        model: the model.
        parameters: of its function.
        unit: what its n counts: 1, or for annotated voxels a power of ten of them.
    """

    model: CurveModel
    parameters: tuple[float, ...]
    unit: float = 1.0

    def predict(self, n: Array | Sequence[float] | float) -> Array:
        """The Dice at labelled counts."""
        return self.model.function(np.asarray(n, dtype=np.float64) / self.unit, *self.parameters)

    def labels_for(self, dice: float) -> float:
        """The labelled count at which a Dice is reached; infinite if never."""
        return self.unit * self.model.inverse(dice, *self.parameters)


def fit_model(
    model: CurveModel, labelled: Array, dice: Array, again: Fit | None = None
) -> Fit | None:
    """Bounded least squares; None if it does not converge or has fewer points than parameters.

    Args:
        model: the model.
        labelled: the labelled counts, above 0.
        dice: the Dice at each.
        again: a fit of the model, from which the search begins.
    """
    unit = _unit(labelled) if again is None else again.unit
    n, d = np.asarray(labelled, dtype=np.float64) / unit, np.asarray(dice, dtype=np.float64)
    if len(n) < len(model.bounds[0]):
        return None
    start = model.start(n, d) if again is None else again.parameters
    guess = np.clip(start, *model.bounds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # no covariance needed
            parameters, _ = curve_fit(
                model.function, n, d, p0=guess, bounds=model.bounds, max_nfev=2000
            )
    except RuntimeError:  # no convergence
        return None
    return Fit(model, tuple(float(p) for p in parameters), unit)


def _unit(labelled: Array) -> float:
    """The power of ten that brings counts below 10,000, for which the models' bounds are made."""
    digits = math.floor(math.log10(np.max(labelled))) + 1
    return 10.0 ** max(0, digits - 4)


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


def resampled_fits(fit: Fit, labelled: Array, dice: Array, seeds: Array) -> list[Fit | None]:
    """The model fitted again to ``N_RESAMPLES`` bootstrap resamples (Efron, Ann. Statist. 7, 1979).

    They draw seeds (3 seeds or more) or else residuals. The draws are the same each time.

    Args:
        fit: the model, fitted to all rounds.
        labelled: the labelled counts, shape [n].
        dice: the Dice at each, shape [n].
        seeds: whose each of them is, shape [n].

    Returns:
        One a resample; None where it does not converge.
    """
    rng = np.random.default_rng(0)
    of_seed = [np.flatnonzero(seeds == seed) for seed in pd.unique(seeds)]
    fitted = fit.predict(labelled)
    # p parameters have taken up some of the spread
    n_free = max(len(dice) - len(fit.parameters), 1)
    residuals = (dice - fitted) * math.sqrt(len(dice) / n_free)
    again = []
    for _ in range(N_RESAMPLES):
        if len(of_seed) >= 3:
            drawn = rng.integers(len(of_seed), size=len(of_seed))
            chosen = np.concatenate([of_seed[index] for index in drawn])
            n, d = labelled[chosen], dice[chosen]
        else:
            n, d = labelled, fitted + rng.choice(residuals, len(residuals))
        again.append(fit_model(fit.model, n, d, again=fit))
    return again
