"""Selectors on hand-made candidates: what each of them has to choose, and bad input."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from alseg.core.errors import ConfigError
from alseg.strategies.selectors import balanced, diverse, grouped, noisy, ranked
from alseg.strategies.selectors.candidates import Candidates, Selector
from tests.strategies.builders import candidates_of, indices_of


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def frequencies(selector: Selector, candidates: Candidates, n_draws: int = 4000) -> np.ndarray:
    """How often each candidate is chosen first."""
    generator = rng()
    firsts = [indices_of(selector(candidates, 1, generator))[0] for _ in range(n_draws)]
    return np.bincount(firsts, minlength=len(candidates.ids)) / n_draws


def test_top_k_breaks_ties_by_id() -> None:
    assert indices_of(ranked.top_k(candidates_of([1, 3, 2, 3, 0]), 4, rng())) == [1, 3, 2, 0]
    assert indices_of(ranked.top_k(candidates_of([0, 0, 0]), 2, rng())) == [0, 1]


def test_power_draws_in_proportion_to_the_power_of_the_score() -> None:
    candidates = candidates_of([1, 2, 4])
    found = frequencies(partial(noisy.power, beta=2.0), candidates)
    np.testing.assert_allclose(found, np.array([1, 4, 16]) / 21, atol=0.02)


def test_power_puts_scores_without_a_logarithm_last() -> None:
    candidates = candidates_of([0, 1e-300, -5, 2, 0])
    orders = {tuple(indices_of(noisy.power(candidates, 5, rng(s)))) for s in range(30)}
    assert all(set(order[:2]) == {1, 3} for order in orders)
    assert len({order[2:] for order in orders}) > 1  # drawn, not sorted by id
    assert len(noisy.power(candidates_of([0, 0, 0]), 2, rng())) == 2


def test_power_with_a_schedule_grows_cold() -> None:
    schedule = partial(noisy.geometric, start=1, end=100)
    assert [schedule(p) for p in (0, 0.5, 1)] == pytest.approx([1, 10, 100])
    rounds = {"n_rounds": 5}
    assert candidates_of([1.0], round_number=1, **rounds).progress == 0
    assert candidates_of([1.0], round_number=4, **rounds).progress == 1  # round 5 acquires nothing
    assert candidates_of([1.0], round_number=1, n_rounds=2).progress == 0
    late = candidates_of([1.0, 2.0], round_number=4, **rounds)
    assert frequencies(partial(noisy.power, beta=schedule), late, 200)[1] == 1
    early = candidates_of([1.0, 2.0], round_number=1, **rounds)
    assert frequencies(partial(noisy.power, beta=schedule), early)[1] == pytest.approx(
        2 / 3, abs=0.03
    )


def test_softrank_draws_by_rank_whatever_the_scale() -> None:
    weights = np.array([1 / 3, 1 / 2, 1])
    for scores in ([1, 2, 3], [-1e9, 0, 1e-9]):
        found = frequencies(noisy.softrank, candidates_of(scores))
        np.testing.assert_allclose(found, weights / weights.sum(), atol=0.025)


def test_softrank_prefers_no_id_among_equal_scores() -> None:
    found = frequencies(noisy.softrank, candidates_of([5, 5, 5, 5]))
    np.testing.assert_allclose(found, 0.25, atol=0.03)


def test_gibbs_draws_by_softmax() -> None:
    found = frequencies(partial(noisy.gibbs, temperature=0.5), candidates_of([0, 0.5, 1]))
    weights = np.exp([0, 1, 2])
    np.testing.assert_allclose(found, weights / weights.sum(), atol=0.025)


@pytest.mark.parametrize("value", [0, -1, np.inf, np.nan])
def test_coldness_and_temperature_must_be_positive(value: float) -> None:
    candidates = candidates_of([1, 2])
    for selector in (
        partial(noisy.power, beta=value),
        partial(noisy.softrank, beta=value),
        partial(noisy.gibbs, temperature=value),
    ):
        with pytest.raises(ValueError, match="positive"):
            selector(candidates, 1, rng())


def test_stochastic_batch_takes_the_best_of_the_groups() -> None:
    candidates = candidates_of([9, 1, 8, 1, 7, 1])
    for seed in range(20):
        groups = rng(seed).permutation(6).reshape(2, 3)
        best = max(groups.tolist(), key=lambda group: candidates.require_scores()[group].sum())
        chosen = indices_of(noisy.stochastic_batch(candidates, 3, rng(seed)))
        assert sorted(chosen) == sorted(best)
        scores = candidates.require_scores()[chosen]
        assert list(scores) == sorted(scores, reverse=True)


def test_class_stratified_shares_the_query_between_classes() -> None:
    class_scores = [[9, 0], [8, 0], [7, 0], [0, 9], [0, 8], [0, 7], [0, 0], [0, 0]]
    scores = [0, 0, 0, 0, 0, 0, 5, 9]
    candidates = candidates_of([float(s) for s in scores], class_scores=class_scores)
    chosen = indices_of(balanced.class_stratified(candidates, 6, rng()))
    assert set(chosen[:4]) == {0, 1, 3, 4}  # round(0.66 x 6) = 4, two for each class
    assert chosen[4:] == [7, 6]  # the rest by the plain score
    assert set(balanced.class_stratified(candidates, 2, rng(), fraction=1)) == {
        "case_000",
        "case_003",
    }
    assert indices_of(balanced.class_stratified(candidates, 2, rng(), fraction=0)) == [7, 6]


def test_class_stratified_draws_which_class_gets_the_odd_place() -> None:
    candidates = candidates_of([1.0, 1.0], class_scores=[[1, 0], [0, 1]])
    firsts = {balanced.class_stratified(candidates, 1, rng(s))[0] for s in range(20)}
    assert firsts == {"case_000", "case_001"}


def test_class_stratified_skips_a_class_that_is_never_predicted() -> None:
    candidates = candidates_of([1.0, 2.0, 3.0, 4.0], class_scores=[[4, 0], [3, 0], [2, 0], [1, 0]])
    assert indices_of(balanced.class_stratified(candidates, 3, rng())) == [0, 1, 3]
    never = candidates_of([1.0, 2.0, 3.0], class_scores=[[0, 0], [0, 0], [0, 0]])
    assert indices_of(balanced.class_stratified(never, 2, rng())) == [2, 1]  # the plain score only


def test_class_stratified_with_one_class_and_overlapping_rankings() -> None:
    candidates = candidates_of([1.0, 2.0, 3.0], class_scores=[[1], [2], [3]])
    assert indices_of(balanced.class_stratified(candidates, 3, rng())) == [2, 1, 0]


def test_class_balanced_random_holds_the_share() -> None:
    counts = [[5, 0], [7, 0], [0, 1], *[[0, 0]] * 20]
    candidates = candidates_of(class_scores=counts)
    for seed in range(10):
        chosen = indices_of(balanced.class_balanced_random(candidates, 3, rng(seed)))
        assert 2 in chosen
        assert {0, 1} & set(chosen)  # round(0.66 x 3) = 2 places, one for each class
    empty = candidates_of(class_scores=[[0, 0]] * 4)
    assert len(set(balanced.class_balanced_random(empty, 3, rng()))) == 3


def test_k_center_takes_the_farthest() -> None:
    features = [[0.0], [1.0], [2.0], [10.0]]
    candidates = candidates_of(features=features, labelled_features=[[0.0]])
    assert indices_of(diverse.k_center(candidates, 3, rng())) == [3, 2, 1]
    # without labelled cases the first one is drawn
    firsts = {diverse.k_center(candidates_of(features=features), 1, rng(s))[0] for s in range(30)}
    assert len(firsts) == 4


def test_k_center_with_copies_chooses_distinct_cases() -> None:
    candidates = candidates_of(features=[[1.0, 2.0]] * 4, labelled_features=[[1.0, 2.0]])
    assert indices_of(diverse.k_center(candidates, 3, rng())) == [0, 1, 2]


def test_features_are_standardised_and_constant_ones_ignored() -> None:
    # the second number has a huge scale, the third is constant but for rounding
    features = [[0.0, 0.0, 0.1], [1.0, 1e6, 0.1 + 1e-17], [2.0, 0.0, 0.1]]
    standard, labelled = candidates_of(features=features).standard_features()
    np.testing.assert_allclose(standard.std(axis=0), [1, 1, 0], atol=1e-12)
    assert labelled.shape == (0, 3)


def test_kmeans_plus_plus_starts_with_the_longest_and_spreads() -> None:
    # two directions; the left one is more uncertain
    features = [[-1.0], [-1.0], [-1.0], [1.0], [1.0], [1.0]]
    candidates = candidates_of([5.0, 4.0, 4.5, 1.0, 2.0, 3.0], features=features)
    seconds = []
    for seed in range(50):
        first, second = indices_of(diverse.kmeans_plus_plus(candidates, 2, rng(seed)))
        assert first == 0
        seconds.append(second)
    assert np.mean([second >= 3 for second in seconds]) > 0.9


@pytest.mark.parametrize("scores", [[0.0] * 4, [-1.0] * 4, [1e-200] * 4, [1e200] * 4])
def test_kmeans_plus_plus_with_equal_scores(scores: list[float]) -> None:
    for features in ([[0.0]] * 4, [[0.0], [1.0], [2.0], [3.0]]):
        candidates = candidates_of(scores, features=features)
        assert len(set(diverse.kmeans_plus_plus(candidates, 4, rng()))) == 4


def test_kmeans_chooses_the_middle_of_each_cluster() -> None:
    features = [[0.0], [1.0], [2.0], [100.0], [101.0], [102.0]]
    assert set(indices_of(diverse.kmeans(candidates_of(features=features), 2, rng()))) == {1, 4}


def test_kmeans_follows_the_weights() -> None:
    features = [[0.0], [1.0], [2.0], [100.0], [101.0], [102.0]]
    weighted = candidates_of([0.0, 0.0, 9.0, 1.0, 0.0, 0.0], features=features)
    assert indices_of(diverse.kmeans(weighted, 2, rng())) == [2, 3]  # the heavier cluster first


def test_typiclust_takes_typical_cases_of_uncovered_clusters() -> None:
    features = [[0.0], [1.0], [2.0], [100.0], [101.0], [102.0], [103.5], [500.0]]
    labelled = [[0.5]]
    chosen = diverse.typiclust(
        candidates_of(features=features, labelled_features=labelled), 2, rng()
    )
    # three clusters: the first is labelled, then the largest one's middle, then the outlier
    assert indices_of(chosen)[0] in (4, 5)
    assert indices_of(chosen)[1] == 7


def test_typiclust_fills_up_when_clusters_run_out() -> None:
    candidates = candidates_of(features=[[1.0]] * 5, labelled_features=[[1.0]] * 3)
    assert len(set(diverse.typiclust(candidates, 5, rng()))) == 5
    capped = candidates_of(features=[[float(i)] for i in range(9)])
    assert len(set(diverse.typiclust(capped, 7, rng(), max_clusters=2))) == 7


def test_typiclust_leaves_small_clusters_for_last_where_it_is_told_to() -> None:
    near = [[0.0], [0.1], [0.2], [10.0], [10.1], [10.2]]
    candidates = candidates_of(features=[*near, [50.0]])
    assert 6 in indices_of(diverse.typiclust(candidates, 3, rng()))
    chosen = indices_of(diverse.typiclust(candidates, 7, rng(), max_clusters=3, min_size=2))
    assert chosen[-1] == 6
    assert {number // 3 for number in chosen[:2]} == {0, 1}


def test_typical_to_uncertain_moves_from_the_typical_case_of_a_cluster_to_the_uncertain_one() -> (
    None
):
    features = [[0.0], [100.0], [101.0], [102.0], [103.5], [109.0]]
    pool = {"features": features, "labelled_features": [[0.5]], "n_rounds": 4}
    scores = [0.0, 0.3, 0.2, 0.1, 0.4, 0.9]  # the highest one is at the edge of its cluster

    def first(round_number: int) -> int:
        candidates = candidates_of(scores, round_number=round_number, **pool)
        return indices_of(diverse.typical_to_uncertain(candidates, 1, rng()))[0]

    typical = diverse.typiclust(candidates_of(**pool), 1, rng())
    assert [first(1)] == indices_of(typical) == [3]
    assert first(2) == 4  # third by typicality, second by score
    assert first(3) == 5


def test_typical_to_uncertain_stays_out_of_clusters_that_hold_a_labelled_case() -> None:
    candidates = candidates_of(
        [9.0, 8.0, 0.0, 0.0],
        features=[[0.0], [1.0], [100.0], [101.0]],
        labelled_features=[[0.5]],
        round_number=3,
        n_rounds=4,
    )
    assert indices_of(diverse.typical_to_uncertain(candidates, 1, rng()))[0] in (2, 3)


def visits(*ids: str, scores: list[float], labelled: tuple[str, ...] = ()) -> Candidates:
    return Candidates(ids=ids, scores=np.array(scores), labelled=labelled)


def test_one_per_group_takes_a_second_case_of_a_patient_only_when_no_fresh_one_is_left() -> None:
    pool = visits(
        "p1_a", "p1_b", "p2_a", "p2_b", "p3_a", scores=[9, 8, 7, 6, 5], labelled=("p3_b",)
    )

    def query(n: int, pattern: str | None) -> list[str]:
        return grouped.one_per_group(pool, n, rng(), pattern=pattern)

    assert query(5, r"p\d") == ["p1_a", "p2_a", "p1_b", "p2_b", "p3_a"]
    assert query(2, r"(p\d)_.") == ["p1_a", "p2_a"]  # the bracket names the group
    assert query(2, None) == query(2, "nothing like it") == ["p1_a", "p1_b"]
    with pytest.raises(ConfigError, match="must be a regular expression"):
        query(2, "(p")


def test_regions_belong_to_the_group_of_their_case() -> None:
    regions = ("a[0:1,0:1,0:1]", "a[2:3,0:1,0:1]", "b[0:1,0:1,0:1]", "c[0:1,0:1,0:1]")
    pool = replace(
        visits(*regions, scores=[9, 8, 7, 6], labelled=("b",)), cases=("a", "a", "b", "c")
    )

    def query(n: int, pattern: str | None) -> list[str]:
        return grouped.one_per_group(pool, n, rng(), pattern=pattern)

    assert query(2, None) == query(2, "nothing like it") == [regions[0], regions[3]]
    assert query(4, None) == [regions[0], regions[3], regions[1], regions[2]]
    some = pool.subset(np.array([3, 1]))
    assert (some.ids, some.cases) == ((regions[1], regions[3]), ("a", "c"))


def test_random_per_group_draws_each_patient_alike() -> None:
    pool = visits("p1_a", "p1_b", "p1_c", "p2_a", scores=[0, 0, 0, 0])
    generator = rng()
    queries = [grouped.random_per_group(pool, 2, generator, pattern=r"p\d") for _ in range(400)]
    assert all({case_id[:2] for case_id in query} == {"p1", "p2"} for query in queries)
    counts = [sum(case_id in query for query in queries) for case_id in pool.ids]
    assert counts[3] == 400
    assert all(90 < count < 180 for count in counts[:3])


def test_fresh_groups_offers_one_case_of_each_group_without_a_labelled_one() -> None:
    pool = visits(
        "p1_a", "p1_b", "p2_a", "p2_b", "p3_a", scores=[9, 8, 7, 6, 5], labelled=("p3_b",)
    )

    def query(n: int, pattern: str | None, seed: int = 0) -> list[str]:
        return grouped.fresh_groups(pool, n, rng(seed), pattern=pattern, then=ranked.top_k)

    assert query(3, None) == query(3, "nothing like it") == ["p1_a", "p1_b", "p2_a"]
    pairs = {tuple(query(2, r"p\d", seed)) for seed in range(40)}
    assert pairs == {(f"p1_{one}", f"p2_{other}") for one in "ab" for other in "ab"}
    for seed in range(5):
        more = query(4, r"p\d", seed)  # then the best of all others, of p3 as well
        assert more[2:] == [name for name in pool.ids if name not in more[:2]][:2]
    assert set(query(5, r"p\d")) == set(pool.ids)


def test_cases_that_fresh_groups_has_chosen_are_labelled_ones_for_what_follows() -> None:
    pool = replace(
        candidates_of(features=[[0.0], [0.1], [9.0]]), labelled=("x",), labelled_features=None
    )
    left = pool.after(["case_002"])
    assert (left.ids, left.labelled) == (("case_000", "case_001"), ("x", "case_002"))
    assert left.features is not None
    assert left.labelled_features is not None
    assert (left.features.ravel().tolist(), left.labelled_features.tolist()) == ([0, 0.1], [[9.0]])
    regions = replace(visits("a[0]", "a[1]", "b[0]", scores=[1, 2, 3]), cases=("a", "a", "b"))
    left = regions.after(["a[1]"])
    assert (left.ids, left.cases, left.labelled) == (("a[0]", "b[0]"), ("a", "b"), ("a",))


@pytest.mark.parametrize(
    ("held", "n_by_score"),
    [
        ([[1, 1]] * 5, 0),  # no class is rare
        ([[1, 1]], 0),  # nor here, though 1 is less than half of the 4 labelled ones to come
        ([[1, 1], [1, 0]], 0),
        ([[1, 0]] * 5, 3),  # half of 8 were 4, and there are 3 places
        ([[1, 1], [1, 0], [1, 0], [1, 0], [1, 0]], 3),
        ([[1, 1], [1, 1], [1, 0], [1, 0], [1, 0]], 2),
        ([[0, 1], [0, 1], [0, 1], [1, 0], [1, 0]], 2),
        ([[1, 0]], 2),
        ([], 2),
    ],
)
def test_rare_classes_first_looks_for_them_until_half_of_the_cases_hold_each(
    held: list[list[int]], n_by_score: int
) -> None:
    candidates = replace(
        candidates_of([5.0, 1.0, 4.0, 2.0, 3.0, 0.0]),
        labelled=tuple(f"l{i}" for i in range(len(held))),
        labelled_classes=np.array(held, dtype=bool).reshape(len(held), 2),
    )
    found: list[tuple[tuple[str, ...], tuple[str, ...]]] = []

    def lowest(rest: Candidates, n: int, generator: np.random.Generator) -> list[str]:
        found.append((rest.ids, rest.labelled[len(held) :]))
        return ranked.highest(rest, -rest.require_scores(), n)

    chosen = balanced.rare_classes_first(candidates, 3, rng(), rest=lowest)
    by_score = indices_of(ranked.top_k(candidates, n_by_score, rng()))
    assert indices_of(chosen) == by_score + [5, 1, 3][: 3 - n_by_score]
    for ids, new in found:  # what was chosen by score counts as labelled for the others
        assert set(new) == set(candidates.ids) - set(ids) == set(chosen[:n_by_score])


def test_rare_classes_first_has_to_know_what_labelled_cases_hold() -> None:
    candidates = replace(candidates_of([1.0, 2.0]), labelled=("x",))
    with pytest.raises(ValueError, match="which classes the labelled cases hold"):
        balanced.rare_classes_first(candidates, 1, rng(), rest=noisy.random)
    with pytest.raises(ValueError, match="share is 2"):
        balanced.rare_classes_first(candidates, 1, rng(), share=2.0, rest=noisy.random)


def test_density_weighted_avoids_the_outlier() -> None:
    features = [[1.0, 0.0], [1.1, 0.1], [0.9, -0.1], [-5.0, 3.0]]
    candidates = candidates_of([1.0, 1.0, 1.0, 1.01], features=features)
    assert indices_of(ranked.top_k(candidates, 1, rng())) == [3]
    assert indices_of(diverse.density_weighted(candidates, 4, rng()))[-1] == 3
    assert indices_of(diverse.density_weighted(candidates, 1, rng(), beta=0)) == [3]


def test_density_is_the_mean_cosine_similarity() -> None:
    generator = rng(5)
    features = generator.normal(size=(7, 3))
    candidates = candidates_of([1.0] * 7, features=features.tolist())
    standard, _ = candidates.standard_features()
    unit = standard / np.linalg.norm(standard, axis=1, keepdims=True)
    expected = np.argsort(-((1 + unit @ unit.T) / 2).mean(axis=1))
    assert indices_of(diverse.density_weighted(candidates, 7, rng())) == expected.tolist()


def test_prefilter_lets_the_other_selector_choose_among_the_best() -> None:
    features = [[0.0], [50.0], [0.1], [0.2], [1.0]]
    candidates = candidates_of(
        [9.0, 0.0, 8.0, 7.0, 6.0], features=features, labelled_features=[[0.0]]
    )
    chosen = ranked.prefilter(candidates, 2, rng(), multiple=2, then=diverse.k_center)
    assert indices_of(chosen) == [4, 3]  # case 1 is the farthest, but not among the best 4
    assert set(
        indices_of(ranked.prefilter(candidates, 2, rng(), multiple=1, then=diverse.k_center))
    ) == {
        0,
        2,
    }
    with pytest.raises(ValueError, match="at least 1"):
        ranked.prefilter(candidates, 2, rng(), multiple=0.5, then=ranked.top_k)


@pytest.mark.parametrize(
    ("selector", "missing"),
    [
        (ranked.top_k, "measure"),
        (balanced.class_stratified, "class_scores"),
        (diverse.k_center, "features"),
        (diverse.typiclust, "features"),
        (diverse.typical_to_uncertain, "measure"),
    ],
)
def test_a_missing_part_is_named(selector: Selector, missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        selector(Candidates(ids=("a", "b")), 1, rng())
