"""How a strategy composes its parts, and what it refuses."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from alseg.core.errors import ConfigError, ScoringError
from alseg.strategies import aggregations, measures
from alseg.strategies.selectors import balanced, candidates, diverse, noisy, ranked
from alseg.strategies.statistics import KEPT, VoxelStatistics
from alseg.strategies.strategy import (
    Aggregation,
    CaseScore,
    Measure,
    Strategy,
    candidates_from,
    feature_vector,
)
from tests.strategies.builders import candidates_of, statistics_of


@pytest.mark.parametrize(
    "selector", [noisy.random, diverse.k_center, diverse.typiclust, balanced.class_balanced_random]
)
def test_a_selector_that_looks_at_no_score_is_refused_behind_a_measure(
    selector: candidates.Selector,
) -> None:
    needs = {"features": "mean", "class_scores": measures.class_entropy}
    Strategy("unscored", selector, **needs)
    with pytest.raises(ConfigError, match="strategy scored: its selector looks at no score"):
        Strategy("scored", selector, measures.entropy, aggregations.mean, **needs)


@pytest.fixture
def statistics() -> VoxelStatistics:
    return statistics_of([torch.full((3, 2, 2, 2), 1 / 3)])


def test_what_a_strategy_needs() -> None:
    random = Strategy("random", noisy.random)
    assert not random.needs_prediction
    assert not random.needs_passes
    core_set = Strategy("core_set", diverse.k_center, features="mean", deterministic=True)
    assert core_set.needs_prediction
    assert not core_set.needs_passes
    entropy = Strategy("entropy", ranked.top_k, measures.entropy, aggregations.mean)
    assert entropy.needs_passes


def test_a_schedule_over_the_rounds_is_found_wherever_the_selector_has_it() -> None:
    def has_schedule(selector: candidates.Selector) -> bool:
        parts = {"class_scores": measures.class_entropy, "features": "mean"}
        strategy = Strategy("s", selector, measures.entropy, aggregations.mean, **parts)
        return strategy.has_schedule

    constant = partial(noisy.power, beta=3.0)
    scheduled = partial(noisy.power, beta=noisy.geometric)
    assert has_schedule(scheduled)
    assert not has_schedule(constant)
    for rank, expected in ((scheduled, True), (constant, False)):
        assert has_schedule(partial(balanced.class_stratified, rank=rank)) == expected
        assert has_schedule(partial(ranked.prefilter, multiple=1, then=rank)) == expected
    assert has_schedule(diverse.typical_to_uncertain)
    assert not has_schedule(ranked.top_k)
    assert not Strategy("random", noisy.random).has_schedule


def test_score_keeps_what_the_parts_give(statistics: VoxelStatistics) -> None:
    strategy = Strategy(
        "all",
        balanced.class_stratified,
        measures.entropy,
        aggregations.sum,
        class_scores=measures.class_entropy,
        features="mean",
    )
    vector = torch.tensor([1.0, 2.0])
    case = strategy.score("case_1", statistics, vector)
    assert case.score == pytest.approx(8 * math.log(3), rel=1e-5)
    assert case.class_scores == pytest.approx([math.log(3) / 3] * 2, rel=1e-5)
    assert case.features is not None
    assert (case.features.tolist(), case.features.itemsize) == ([1.0, 2.0], 4)
    # of a labelled case only the features are kept
    features = feature_vector((1.0, 2.0))
    reference = strategy.score("case_2", statistics, vector, labelled=True)
    assert reference == CaseScore("case_2", features=features, labelled=True, n_passes=1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values_raise_with_the_name_of_the_case(
    statistics: VoxelStatistics, value: float
) -> None:
    scored = Strategy("s", ranked.top_k, measures.entropy, lambda u, s: value)
    with pytest.raises(ScoringError, match=r"s gave case_7 the score"):
        scored.score("case_7", statistics)
    by_class = Strategy(
        "c", balanced.class_balanced_random, class_scores=lambda s: torch.tensor([0.0, value])
    )
    with pytest.raises(ScoringError, match=r"case_7 the class score"):
        by_class.score("case_7", statistics)
    featured = Strategy("f", diverse.k_center, features="mean")
    with pytest.raises(ScoringError, match=r"case_7 the feature"):
        featured.score("case_7", statistics, torch.tensor([value]))


def test_candidates_keep_labelled_cases_apart() -> None:
    candidates = candidates_from(
        [
            CaseScore("c", 3.0, features=feature_vector((3.0, 0.0))),
            CaseScore("b", features=feature_vector((9.0, 9.0)), labelled=True),
            CaseScore("a", 1.0, features=feature_vector((1.0, 0.0))),
        ],
        round_number=2,
        n_rounds=4,
    )
    assert candidates.ids == ("a", "c")
    assert candidates.require_scores().tolist() == [1, 3]
    assert candidates.features is not None
    assert candidates.features.tolist() == [[1, 0], [3, 0]]
    assert candidates.labelled_features is not None
    assert candidates.labelled_features.tolist() == [[9, 9]]
    assert candidates.class_scores is None
    assert candidates.progress == 0.5


def test_parts_that_do_not_fit_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="come together"):
        Strategy("s", ranked.top_k, measures.entropy)
    with pytest.raises(ConfigError, match="give the strategy a measure"):
        Strategy("s", ranked.top_k)
    with pytest.raises(ConfigError, match="give the strategy features"):
        Strategy("s", diverse.k_center)
    with pytest.raises(ConfigError, match="allowed are mean, foreground"):
        Strategy("s", diverse.k_center, features="deep")


@pytest.mark.parametrize("answer", [[], ["case_000"], ["case_000"] * 2, ["case_000", "case_9"]])
def test_selectors_that_break_the_contract_are_caught(answer: list[str]) -> None:
    def selector(
        candidates: candidates.Candidates, query_size: int, rng: np.random.Generator
    ) -> list[str]:
        rehearsal = candidates.ids[0].startswith("rehearsal")
        return list(candidates.ids[:query_size]) if rehearsal else answer

    with pytest.raises(ScoringError):
        Strategy("s", selector).select(candidates_of([1, 2, 3]), 2, np.random.default_rng(0))


def test_no_candidates_give_an_empty_query() -> None:
    strategy = Strategy("random", noisy.random)
    nobody = candidates.Candidates(ids=())
    assert strategy.select(nobody, 5, np.random.default_rng(0)) == []


@pytest.mark.parametrize(
    ("measure", "aggregation", "read"),
    [
        (measures.variance, aggregations.mean, {"variance"}),
        (measures.entropy, aggregations.foreground_mean, set()),
        (measures.mutual_information, aggregations.mean, {"expected_entropy"}),
        (measures.variation_ratio, aggregations.mean, {"votes"}),
        (measures.entropy, aggregations.dice_disagreement, {"variance"}),
        (measures.prediction_error, aggregations.hidden_dice_error, set()),
        (lambda statistics: statistics.mean[0], aggregations.mean, set(KEPT)),  # not alseg's
        (partial(measures.variance), partial(aggregations.top_fraction_mean, fraction=0.1),
         {"variance"}),
    ],
)  # fmt: skip
def test_passes_keep_the_statistics_that_a_strategy_reads(
    measure: Measure, aggregation: Aggregation, read: set[str]
) -> None:
    strategy = Strategy("s", ranked.top_k, measure, aggregation, reads_labels=True)
    assert strategy.statistics_read == read
    everything, kept = VoxelStatistics(), VoxelStatistics(read)
    for statistics in (everything, kept):
        for seed in range(3):
            noise = torch.randn(3, 6, 6, 6, generator=torch.Generator().manual_seed(seed))
            statistics.update(noise.softmax(dim=0))
        statistics.attach_hidden_label(torch.ones(6, 6, 6, dtype=torch.uint8))
    assert strategy.score("case", kept).score == strategy.score("case", everything).score
    for name in KEPT - read:
        with pytest.raises(ValueError, match=f"{name} is not kept"):
            getattr(kept, name)
