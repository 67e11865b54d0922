"""What holds for every selector, whatever the scores and features."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alseg.strategies.selectors import balanced, diverse, grouped, noisy, ranked
from alseg.strategies.selectors.candidates import Selector
from alseg.strategies.strategy import CaseScore, Strategy, candidates_from, feature_vector

SELECTORS: dict[str, Selector] = {
    "top_k": ranked.top_k,
    "random": noisy.random,
    "power": noisy.power,
    "power_scheduled": partial(noisy.power, beta=noisy.geometric),
    "softrank": noisy.softrank,
    "gibbs": partial(noisy.gibbs, temperature=0.1),
    "class_stratified": partial(balanced.class_stratified, rank=noisy.power),
    "class_balanced_random": balanced.class_balanced_random,
    "stochastic_batch": noisy.stochastic_batch,
    "k_center": diverse.k_center,
    "kmeans_plus_plus": diverse.kmeans_plus_plus,
    "kmeans": diverse.kmeans,
    "typiclust": diverse.typiclust,
    "density_weighted": diverse.density_weighted,
    "typical_to_uncertain": diverse.typical_to_uncertain,
    "one_per_group": partial(grouped.one_per_group, pattern=r"case_\d"),
    "random_per_group": partial(grouped.random_per_group, pattern=r"case_\d"),
    "prefilter": partial(ranked.prefilter, multiple=2, then=diverse.k_center),
    "fresh_groups": partial(grouped.fresh_groups, pattern=r"case_\d", then=diverse.typiclust),
    "rare_classes_first": partial(balanced.rare_classes_first, rest=diverse.typiclust),
}

LOOK_AT_NO_SCORE = ("random", "class_balanced_random", "k_center", "random_per_group", "typiclust")

numbers = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5]),  # ties are likely
    st.floats(-1e6, 1e6, allow_subnormal=False),
)


@st.composite
def scored_pools(draw: st.DrawFn) -> tuple[list[CaseScore], int]:
    """Scored cases in any order, some of them labelled, and a query size."""
    n, n_labelled = draw(st.integers(1, 12)), draw(st.integers(0, 4))
    vectors = st.tuples(numbers, numbers, numbers)
    pool = [
        CaseScore(
            f"case_{i:02d}",
            score=None if i >= n else draw(numbers),
            class_scores=None if i >= n else draw(st.tuples(numbers, numbers)),
            features=feature_vector(draw(vectors)),
            labelled=i >= n,
        )
        for i in range(n + n_labelled)
    ]
    return draw(st.permutations(pool)), draw(st.integers(1, 15))


@pytest.mark.parametrize("name", SELECTORS)
@settings(max_examples=25, deadline=None)
@given(case=scored_pools(), seed=st.integers(0, 2**32 - 1))
def test_every_selector(name: str, case: tuple[list[CaseScore], int], seed: int) -> None:
    pool, query_size = case
    is_scored = name not in LOOK_AT_NO_SCORE  # a strategy takes no measure that changes nothing
    strategy = Strategy(
        name,
        SELECTORS[name],
        measure=(lambda statistics: statistics.mean[0]) if is_scored else None,
        aggregation=(lambda uncertainty, statistics: 0.0) if is_scored else None,
        class_scores=lambda statistics: statistics.mean[1:, 0, 0, 0],
        features="mean",
    )

    def chosen(scores: list[CaseScore]) -> list[str]:
        candidates = candidates_from(scores, round_number=2, n_rounds=6)
        return strategy.select(candidates, query_size, np.random.default_rng(seed))

    query = chosen(pool)
    unlabelled = {score.case_id for score in pool if not score.labelled}
    assert len(query) == min(query_size, len(unlabelled))
    assert len(set(query)) == len(query)  # distinct
    assert set(query) <= unlabelled
    assert chosen(pool) == query  # a function of the seed
    assert chosen(sorted(pool, key=lambda s: s.case_id)) == query  # whatever the pool's order


SAME_FOR_ALL_SEEDS = {"top_k", "one_per_group", "density_weighted", "kmeans"}


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - SAME_FOR_ALL_SEEDS))
def test_stochastic_selectors_differ_between_seeds(name: str) -> None:
    generator = np.random.default_rng(1)
    pool = [
        CaseScore(
            f"case_{i:02d}",
            float(generator.random()),
            tuple(generator.random(2)),
            feature_vector(generator.normal(size=3)),
        )
        for i in range(40)
    ]
    candidates = candidates_from(pool)
    queries = {
        tuple(SELECTORS[name](candidates, 5, np.random.default_rng(seed))) for seed in range(8)
    }
    assert len(queries) > 1
