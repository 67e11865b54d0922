"""The forecast: exact curves, intervals, back-test, and when it declines."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from alseg.curves.forecast import back_test, expected_gain, forecast
from alseg.curves.models import MODELS, MOST_MISS, choose_fit, fit_model, miss

POWER, EXPONENTIAL, LOGARITHMIC = MODELS
PARAMETERS = {
    "power law": (0.9, 0.6, 0.5),
    "exponential": (0.85, 0.4, 12.0),
    "logarithmic": (0.4, 0.12),
}
COUNTS = np.arange(5.0, 35.0, 5.0)


def curves(dice: np.ndarray, counts: np.ndarray = COUNTS, noise: tuple[float, ...] = (0.0,)):
    return pd.DataFrame(
        [
            {"strategy": "s", "seed": seed, "labelled": int(n), "dice": d + shift}
            for seed, shift in enumerate(noise)
            for n, d in zip(counts, dice, strict=True)
        ]
    )


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_an_exact_curve_gives_back_its_parameters(model) -> None:
    parameters = PARAMETERS[model.name]
    fit = fit_model(model, COUNTS, model.function(COUNTS, *parameters))
    assert fit is not None
    assert fit.parameters == pytest.approx(parameters, rel=1e-3)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_an_exact_curve_is_recognised_and_continued(model) -> None:
    dice = model.function(COUNTS, *PARAMETERS[model.name])
    fit = choose_fit(COUNTS, dice)
    assert fit is not None
    assert fit.model is model
    target = float(model.function(np.array(47.0), *PARAMETERS[model.name]))
    result = forecast(curves(dice), target)
    assert result.volumes == pytest.approx(47.0, rel=0.01)
    assert result.low == pytest.approx(result.high, rel=0.02)  # no noise, no interval
    assert f"about {math.ceil(result.volumes)} labelled volumes" in result.statement


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_inverse_is_the_inverse(model) -> None:
    parameters = PARAMETERS[model.name]
    for n in (3.0, 20.0, 45.0):
        dice = float(model.function(np.array(n), *parameters))
        assert model.inverse(dice, *parameters) == pytest.approx(n)
    assert model.inverse(1.0001, *parameters) == math.inf


def test_seeds_that_differ_widen_the_interval_and_it_is_seeded() -> None:
    dice = POWER.function(COUNTS, *PARAMETERS["power law"])
    rows = curves(dice, noise=(-0.02, 0.0, 0.005, 0.01))
    result = forecast(rows, 0.82)
    assert result.volumes is not None
    assert result.low < result.volumes < result.high
    assert forecast(rows.sample(frac=1, random_state=1), 0.82).low == result.low


def test_a_reached_target_says_when() -> None:
    dice = POWER.function(COUNTS, *PARAMETERS["power law"])
    result = forecast(curves(dice), 0.75)
    assert result.volumes == 20
    assert "is reached with 20 labelled volumes" in result.statement
    assert result.volumes == 20
    assert math.isnan(result.low)  # a fact, not a forecast


@pytest.mark.parametrize(
    ("dice", "counts", "target", "reason"),
    [
        ([0.5, 0.6, 0.65], COUNTS[:3], 0.8, "no forecast from 3 rounds; it takes at least 4"),
        (PARAMETERS, COUNTS, 0.95, "levels off below it"),
        ([0.50, 0.51, 0.515, 0.52, 0.523, 0.526], COUNTS, 0.62, "more than 10 times"),
        ([0.6] * 6, COUNTS, 0.7, "no forecast for Dice 0.700"),
        ([0.7, 0.68, 0.66, 0.64, 0.62, 0.6], COUNTS, 0.8, "no forecast for Dice 0.800"),
    ],
    ids=["few rounds", "asymptote", "far", "flat", "falling"],
)
def test_it_declines_in_a_sentence(dice, counts, target: float, reason: str) -> None:
    if dice is PARAMETERS:
        dice = EXPONENTIAL.function(counts, *PARAMETERS["exponential"])
    result = forecast(curves(np.array(dice), counts), target)
    assert result.volumes is None
    assert reason in result.statement
    assert result.statement.endswith(".")


def test_back_test_predicts_the_last_round_from_the_first_ones() -> None:
    dice = POWER.function(COUNTS, *PARAMETERS["power law"])
    rows = back_test(curves(dice))
    assert rows["rounds_used"].tolist() == [4, 5]
    assert rows["rounds_ahead"].tolist() == [2, 1]
    assert rows["error"].max() < 1e-3
    np.testing.assert_allclose(rows["error_no_change"], [dice[-1] - dice[3], dice[-1] - dice[4]])


def test_back_test_never_sees_the_last_round() -> None:
    dice = POWER.function(COUNTS, *PARAMETERS["power law"])
    changed = dice.copy()
    changed[-1] = 0.1
    before, after = back_test(curves(dice)), back_test(curves(changed))
    assert before["predicted"].tolist() == after["predicted"].tolist()


def test_back_test_of_short_curves_is_empty() -> None:
    assert back_test(curves(np.array([0.5, 0.6, 0.7, 0.75]), COUNTS[:4])).empty


def test_a_fit_that_misses_the_points_forecasts_nothing_and_is_not_kept() -> None:
    scattered = np.array([0.574, 0.611, 0.601, 0.583])
    result = forecast(curves(scattered, COUNTS[:4]), 0.7)
    assert result.fit is None
    assert result.volumes is None
    assert "the fitted curve misses the rounds so far by" in result.statement
    fit = choose_fit(COUNTS[:4], scattered)
    assert fit is not None
    mean = pd.Series(scattered, index=COUNTS[:4])
    residuals = scattered - fit.predict(COUNTS[:4])
    by_hand = math.sqrt(sum(r * r for r in residuals) / 4) / (0.611 - 0.574)
    assert miss(fit, mean) == pytest.approx(by_hand)
    assert by_hand > MOST_MISS
    reached = forecast(curves(scattered, COUNTS[:4]), 0.6)
    assert "is reached with 10 labelled volumes" in reached.statement  # a fact needs no fit
    assert reached.fit is None


def test_noise_much_below_the_gain_misses_nothing() -> None:
    dice = POWER.function(COUNTS, *PARAMETERS["power law"])
    noisy = dice + np.array([1, -1, 1, -1, 1, -1]) * 0.01
    assert forecast(curves(noisy), 0.85).fit is not None
    assert miss(choose_fit(COUNTS, dice), pd.Series([0.5] * 6, index=COUNTS)) == 0.0


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_the_expected_gain_of_an_exact_curve_is_its_rise(model) -> None:
    dice = model.function(COUNTS, *PARAMETERS[model.name])
    gain = expected_gain(COUNTS, dice, 5)
    assert gain is not None
    end = np.array([COUNTS[-1], COUNTS[-1] + 5])
    before, after = model.function(end, *PARAMETERS[model.name])
    assert gain.dice == pytest.approx(after - before, abs=1e-4)
    assert gain.low == pytest.approx(gain.high, abs=1e-3)


def test_the_expected_gain_of_a_noisy_curve_has_an_interval_around_it() -> None:
    noise = np.random.default_rng(5).normal(0, 0.01, len(COUNTS))
    gain = expected_gain(COUNTS, POWER.function(COUNTS, *PARAMETERS["power law"]) + noise, 5)
    assert gain is not None
    assert gain.low < gain.dice < gain.high
    assert 0.002 < gain.high - gain.low < 0.1


def test_the_expected_gain_is_not_said_of_few_rounds_or_of_scatter() -> None:
    dice = POWER.function(COUNTS, *PARAMETERS["power law"])
    assert expected_gain(COUNTS[:3], dice[:3], 5) is None
    # four rounds, of which one has labelled nothing new
    assert expected_gain(COUNTS[[0, 1, 2, 2]], dice[[0, 1, 2, 2]], 5) is None
    assert expected_gain(COUNTS, np.array([0.6, 0.3, 0.6, 0.3, 0.6, 0.3]), 5) is None
