"""The statistics against scipy, formulas by hand, and shuffled rows."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from alseg.comparison import statistics
from alseg.comparison.analysis import Comparison
from alseg.core.errors import ConfigError


def table(**areas: list[float]) -> pd.DataFrame:
    """Summaries of strategies whose seeds are 1, 2, ..."""
    rows = [
        {"strategy": name, "seed": seed, "area": area, "final": area}
        for name, values in areas.items()
        for seed, area in enumerate(values, 1)
    ]
    return pd.DataFrame(rows)


def curves_of(**dice: list[list[float]]) -> pd.DataFrame:
    """Curves: for each strategy a list of seeds, each a list of Dice at 5, 10, ... volumes."""
    rows = [
        {"strategy": name, "seed": seed, "labelled": 5 * k, "round": k, "dice": value}
        for name, seeds in dice.items()
        for seed, curve in enumerate(seeds, 1)
        for k, value in enumerate(curve, 1)
    ]
    return pd.DataFrame(rows)


def test_pairs_follow_the_seed_whatever_the_order_of_rows() -> None:
    a, b = [0.5, 0.6, 0.9, 0.4], [0.4, 0.7, 0.5, 0.45]
    frame = table(variance=a, random=b)
    expected = stats.ttest_rel(a, b).pvalue
    for state in range(5):
        shuffled = frame.sample(frac=1, random_state=state, ignore_index=True)
        paired = statistics.pair_by_seed(shuffled, "variance", "random", "area")
        assert paired["seed"].tolist() == [1, 2, 3, 4]
        np.testing.assert_allclose(paired["difference"], np.subtract(a, b))
        row = statistics.differences_from_reference(shuffled, "random").iloc[0]
        assert row["p"] == pytest.approx(expected)


def test_names_do_not_decide_the_pairs() -> None:
    frame = table(variance=[0.5, 0.6, 0.9], random=[0.4, 0.7, 0.5])
    renamed = frame.replace({"strategy": {"variance": "aaa"}}).sample(frac=1, random_state=1)
    before = statistics.differences_from_reference(frame, "random").drop(columns="strategy")
    after = statistics.differences_from_reference(renamed, "random").drop(columns="strategy")
    pd.testing.assert_frame_equal(before, after)


def test_pairing_by_row_order_would_give_another_answer() -> None:
    """The trap: seeds that are missing on one side shift all rows behind them."""
    frame = table(variance=[0.5, 0.6, 0.9, 0.4], random=[0.4, 0.7, 0.5, 0.45])
    frame = frame[~((frame["strategy"] == "random") & (frame["seed"] == 1))]
    frame = frame[~((frame["strategy"] == "variance") & (frame["seed"] == 4))]
    paired = statistics.pair_by_seed(frame, "variance", "random", "area")
    assert paired["seed"].tolist() == [2, 3]
    np.testing.assert_allclose(paired["difference"], [-0.1, 0.4])


def test_a_seed_twice_is_an_error() -> None:
    frame = table(variance=[0.5], random=[0.4])
    with pytest.raises(pd.errors.MergeError):
        statistics.pair_by_seed(pd.concat([frame, frame]), "variance", "random", "area")


def test_too_few_pairs_give_no_p_value_and_no_interval() -> None:
    row = statistics.differences_from_reference(
        table(variance=[0.5, 0.6], random=[0.4, 0.5]), "random"
    ).iloc[0]
    assert row["n_pairs"] == 2
    assert row["difference"] == pytest.approx(0.1)
    assert all(math.isnan(row[name]) for name in ("low", "high", "p", "p_holm"))


def test_the_interval_is_scipys_and_agrees_with_the_p_value() -> None:
    rng = np.random.default_rng(3)
    for n in (3, 5, 12):
        values = rng.normal(0.02, 0.02, n)
        interval = statistics.interval_of_mean(values)
        assert interval == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval())
        excludes_zero = interval[0] > 0 or interval[1] < 0
        assert excludes_zero == (statistics.paired_p_value(values) < 0.05)


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [statistics.interval_of_mean(rng.normal(size=3)) for _ in range(2000)]
    held = np.mean([low <= 0 <= high for low, high in intervals])
    assert held == pytest.approx(0.95, abs=0.015)  # three standard errors


def test_equal_values_have_an_interval_without_width() -> None:
    assert statistics.interval_of_mean([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_p_values_of_differences_without_spread() -> None:
    assert statistics.paired_p_value([0.0, 0.0, 0.0]) == 1.0
    assert statistics.paired_p_value([0.1, 0.1, 0.1]) == 0.0


def test_holm_against_statsmodels() -> None:
    p_values = np.random.default_rng(1).uniform(0, 0.2, 9)
    expected = multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(statistics.holm(p_values.tolist()), expected)


def test_holm_by_hand() -> None:
    # sorted .01 .02 .04: 3 x .01, 2 x .02, 1 x .04, made to increase
    assert statistics.holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    corrected = statistics.holm([0.04, float("nan"), 0.01])
    assert corrected[0] == pytest.approx(0.04)
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.02)


def test_the_area_is_the_trapezoidal_mean_over_the_common_budgets() -> None:
    curves = curves_of(random=[[0.2, 0.4, 0.6]], variance=[[0.2, 0.6, 0.6, 0.9]])
    rows = statistics.run_summaries(curves).set_index("strategy")
    assert statistics.common_budgets(curves) == [5, 10, 15]
    assert rows.loc["random", "area"] == pytest.approx(0.4)
    assert rows.loc["variance", "area"] == pytest.approx(0.5)
    assert rows.loc["variance", "final"] == pytest.approx(0.6)  # at 15, as for random


def test_no_common_budget_is_an_error() -> None:
    curves = curves_of(random=[[0.2]], variance=[[0.3]])
    curves.loc[1, "labelled"] = 7
    with pytest.raises(ConfigError, match="no labelled count in common"):
        statistics.common_budgets(curves)


def test_penalty_matrix_against_independent_t_tests() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.004, (3, 5, 4))
    gains = {"a": 0.05, "b": 0.045, "random": 0.0}
    dice = {
        name: [[0.5, *(0.6 + gain + noise[k, s, 1:])] for s in range(5)]
        for k, (name, gain) in enumerate(gains.items())
    }
    curves = curves_of(**dice)
    matrix = statistics.penalty_matrix(curves)
    assert matrix is not None
    expected = pd.DataFrame(0.0, index=list(dice), columns=list(dice))
    for budget in range(1, 4):
        for x, y in permutations(dice, 2):
            ours, theirs = ([curve[budget] for curve in dice[name]] for name in (x, y))
            test = stats.ttest_rel(ours, theirs)
            if test.pvalue < 0.05 and test.statistic > 0:
                expected.loc[x, y] += 1 / 3
    pd.testing.assert_frame_equal(matrix, expected)
    assert matrix.loc["a", "random"] == pytest.approx(1.0)
    assert matrix.loc["random"].sum() == 0
    shuffled = curves.sample(frac=1, random_state=5)
    pd.testing.assert_frame_equal(statistics.penalty_matrix(shuffled), matrix)


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_the_penalty_matrix_is_that_of_pairing_each_pair_by_seed(missing: float) -> None:
    rng = np.random.default_rng(0)
    curves = curves_of(**{name: (0.5 + rng.normal(0, 0.1, (8, 5))).tolist() for name in "abcd"})
    curves["dice"] += curves["strategy"].map({"a": 0.3, "b": 0.1, "c": 0.1, "d": 0.0})
    curves.loc[rng.random(len(curves)) < missing, "dice"] = np.nan
    curves = curves.sample(frac=1, random_state=1)
    expected = pd.DataFrame(0.0, index=list("abcd"), columns=list("abcd"))
    budgets = statistics.common_budgets(curves)[1:]
    for budget in budgets:
        rows = curves[curves["labelled"] == budget]
        pairs = {
            pair: statistics.pair_by_seed(rows, *pair, "dice")["difference"]
            for pair in combinations("abcd", 2)
        }
        for (a, b), difference in pairs.items():
            if statistics.paired_p_value(difference) < statistics.ALPHA:
                expected.loc[(a, b) if difference.mean() > 0 else (b, a)] += 1 / len(budgets)
    matrix = statistics.penalty_matrix(curves)
    assert expected.to_numpy().sum() > 0
    pd.testing.assert_frame_equal(matrix, expected, check_exact=True)


def test_penalty_matrix_needs_three_seeds() -> None:
    assert statistics.penalty_matrix(curves_of(a=[[0.1, 0.2]] * 2, b=[[0.1, 0.3]] * 2)) is None


def test_ranking_against_scipy_and_demsars_table() -> None:
    areas = {
        "a": [0.90, 0.80, 0.85, 0.70],
        "b": [0.80, 0.70, 0.80, 0.60],
        "c": [0.70, 0.75, 0.60, 0.50],
    }
    ranking = statistics.rank_strategies(table(**areas).sample(frac=1, random_state=2))
    assert ranking is not None
    assert ranking.mean_ranks.to_dict() == {"a": 1.0, "b": 2.25, "c": 2.75}
    test = stats.friedmanchisquare(*areas.values())
    assert (ranking.statistic, ranking.p) == pytest.approx((test.statistic, test.pvalue))
    # Demšar 2006, table 5: q_0.05 = 2.343 for 3 classifiers
    assert ranking.critical_difference == pytest.approx(
        2.343 * math.sqrt(3 * 4 / (6 * 4)), abs=1e-3
    )
    # Nemenyi by hand: q = Δrank / √(k(k+1)/(6N)), studentised range at q√2
    q = 1.75 / math.sqrt(3 * 4 / (6 * 4)) * math.sqrt(2)
    assert ranking.nemenyi_p.loc["a", "c"] == pytest.approx(
        stats.studentized_range.sf(q, 3, np.inf), abs=1e-6
    )


def test_ranking_drops_seeds_that_a_strategy_lacks() -> None:
    frame = table(a=[0.9, 0.8, 0.7, 0.6], b=[0.8, 0.7, 0.6, 0.5], c=[0.7, 0.6, 0.5])
    ranking = statistics.rank_strategies(frame)
    assert ranking is not None
    assert ranking.n_seeds == 3


def test_ranking_needs_three_strategies_and_three_seeds() -> None:
    assert statistics.rank_strategies(table(a=[0.1] * 5, b=[0.2] * 5)) is None
    assert statistics.rank_strategies(table(a=[0.1] * 2, b=[0.2] * 2, c=[0.3] * 2)) is None


def test_strategies_that_are_all_alike_share_their_rank() -> None:
    ranking = statistics.rank_strategies(table(a=[0.1] * 3, b=[0.1] * 3, c=[0.1] * 3))
    assert ranking is not None
    assert (ranking.mean_ranks == 2).all()
    assert ranking.p == 1.0


@pytest.mark.parametrize(
    ("target", "expected"), [(0.5, 5), (0.55, 7.5), (0.6, 10), (0.7, 15), (0.71, math.inf)]
)
def test_labels_to_reach_is_linear_between_rounds(target: float, expected: float) -> None:
    assert statistics.labels_to_reach([5, 10, 15], [0.5, 0.6, 0.7], target) == pytest.approx(
        expected
    )


def test_shares_of_the_full_data_dice() -> None:
    curves = curves_of(a=[[0.5, 0.9], [0.5, 0.6], [0.8, 1.0]])
    rows = statistics.labels_to_reach_shares(curves, 1.0, shares=(0.7, 0.95))
    assert rows["n_reached"].tolist() == [2, 1]
    assert rows["median"].tolist() == [7.5, math.inf]


def test_foreground_efficiency_recovers_its_own_curve() -> None:
    x = np.array([0.05, 0.1, 0.2, 0.4])
    dice = 0.9 - 0.5 * np.exp(-6.0 * (x - 0.05))
    assert statistics.foreground_efficiency(x, dice, 0.4, 0.9) == pytest.approx(6.0, rel=1e-6)
    assert math.isnan(statistics.foreground_efficiency(x, dice, 0.9, 0.9))


def test_foreground_efficiencies_need_the_voxels_and_full_data() -> None:
    curves = curves_of(a=[[0.4, 0.9 - 0.5 * math.exp(-6.0 * 0.1)]])
    full = pd.DataFrame({"dice": [0.9], "foreground_voxels": [1000]})
    assert statistics.foreground_efficiencies(curves, full) is None
    with_voxels = curves.assign(foreground_voxels=[100, 200])
    result = statistics.foreground_efficiencies(with_voxels, full)
    assert result is not None
    assert result["foreground_efficiency"].tolist() == pytest.approx([6.0])


def test_calibration_error_by_hand() -> None:
    bins = pd.DataFrame(
        {
            "strategy": "a", "seed": [1, 2, 1], "round": 1, "bin_low": [0, 0, 0.5],
            "bin_high": [0.5, 0.5, 1], "n_voxels": [10, 30, 60],
            "confidence": [0.4, 0.4, 0.8], "accuracy": [0.6, 0.2, 0.9],
        }
    )  # fmt: skip
    # first bin: accuracy (10 x .6 + 30 x .2) / 40 = .3, gap .1; second: gap .1
    assert statistics.calibration_errors(bins)["ece"].tolist() == pytest.approx([0.1])


def test_the_synthetic_sweep_is_told_apart(comparison: Comparison) -> None:
    rows = comparison.differences.set_index("strategy")
    assert (rows["n_pairs"] == 4).all()
    assert rows.loc["power", "low"] > 0
    assert comparison.ranking is not None
    assert comparison.ranking.mean_ranks.index[-1] == "random"
    assert comparison.matrix is not None
    assert comparison.matrix.to_numpy().diagonal().sum() == 0


def test_the_last_gain_is_a_paired_step_with_students_t() -> None:
    curves = curves_of(
        a=[[0.1, 0.5, 0.56], [0.1, 0.6, 0.62], [0.1, 0.7, 0.78]], b=[[0.1, 0.2, 0.3]]
    )
    gain = statistics.last_gain(curves.sample(frac=1, random_state=1), "a")
    assert gain is not None
    assert (gain.before, gain.after, gain.n_seeds) == (10, 15, 3)
    steps = [0.06, 0.02, 0.08]
    assert gain.dice == pytest.approx(0.16 / 3)
    assert gain.slope == pytest.approx(0.16 / 15)
    expected = stats.ttest_1samp(steps, 0).confidence_interval(0.95)
    assert (gain.low, gain.high) == pytest.approx(tuple(expected))
    few = statistics.last_gain(curves, "b")
    assert few is not None
    assert math.isnan(few.low)
    assert statistics.last_gain(curves_of(a=[[0.1]]), "a") is None


def test_annotations_saved_by_hand() -> None:
    curves = curves_of(
        # level .6, the reference's end: reached at 10 against 15
        # level .5, the reference's end: at 5 + 5 * .2/.4 = 7.5 against 15
        # level .5, the strategy's end: at 15 against 5 + 5 * .3/.4 = 8.75
        a=[[0.2, 0.6, 0.8], [0.3, 0.7, 0.7], [0.2, 0.3, 0.5]],
        random=[[0.2, 0.4, 0.6], [0.3, 0.4, 0.5], [0.2, 0.6, 0.6], [0.1, 0.1, 0.1]],
    )
    rows = statistics.annotations_saved(curves.sample(frac=1, random_state=3), "a", "random")
    assert rows["seed"].tolist() == [1, 2, 3]
    assert rows["level"].tolist() == pytest.approx([0.6, 0.5, 0.5])
    assert rows["labelled"].tolist() == pytest.approx([10, 7.5, 15])
    assert rows["reference"].tolist() == pytest.approx([15, 15, 8.75])
    assert rows["saved"].tolist() == pytest.approx([5, 7.5, -6.25])
    assert rows["reaches_final"].tolist() == [False, False, True]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.lists(st.floats(0, 1), min_size=4, max_size=4)] * 2), min_size=1, max_size=4
    )
)
def test_no_saving_is_censored_and_the_reference_saves_nothing_against_itself(pairs) -> None:
    curves = curves_of(a=[a for a, _ in pairs], random=[b for _, b in pairs])
    rows = statistics.annotations_saved(curves, "a", "random")
    assert rows["saved"].between(-15, 15).all()
    swapped = statistics.annotations_saved(curves, "random", "a")
    np.testing.assert_allclose(rows["saved"], -swapped["saved"])
    assert (statistics.annotations_saved(curves, "a", "a")["saved"] == 0).all()
