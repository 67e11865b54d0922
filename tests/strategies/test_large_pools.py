"""Pools beyond ``MOST_EXACT``: queries as good as the exact ones, and small pools as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import candidates_of, indices_of
from sklearn.cluster import KMeans

from alseg.strategies.selectors import diverse, feature_space
from alseg.strategies.selectors.candidates import Candidates

N_GROUPS = 12
Large = Callable[[], None]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Large:
    """Call it, and all pools are large ones from then on."""

    def make() -> None:
        for name, value in (("MOST_EXACT", 50), ("MOST_REFERENCES", 100), ("BLOCK", 128)):
            monkeypatch.setattr(feature_space, name, value)

    return make


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def groups() -> np.ndarray:
    """Which of some groups each of 1500 vectors belongs to, of unequal sizes."""
    return np.repeat(np.arange(N_GROUPS), np.linspace(50, 200, N_GROUPS).astype(int))


@pytest.fixture
def pool(groups: np.ndarray) -> Candidates:
    centres = rng(1).normal(size=(N_GROUPS, 6)) * 4
    features = centres[groups] + rng(2).normal(size=(len(groups), 6)) * 0.5
    features = features.astype(np.float32)
    labelled = features[groups == 0][:3] + np.float32(0.01)
    scores = rng(3).random(len(groups))
    return candidates_of(scores=scores, features=features, labelled_features=labelled)


def test_k_center_has_the_exact_query(pool: Candidates, large: Large) -> None:
    exact = diverse.k_center(pool, 40, rng())
    large()
    assert diverse.k_center(pool, 40, rng()) == exact


def test_density_and_the_first_of_kmeans_plus_plus_are_the_exact_ones(
    pool: Candidates, large: Large
) -> None:
    density = diverse.density_weighted(pool, 40, rng())
    first = diverse.kmeans_plus_plus(pool, 40, rng())[0]
    large()
    assert diverse.density_weighted(pool, 40, rng()) == density
    spread = diverse.kmeans_plus_plus(pool, 40, rng())
    assert spread[0] == first
    assert len(set(spread)) == 40


def test_kmeans_of_batches_has_a_case_of_each_group_and_covers_the_pool(
    pool: Candidates, groups: np.ndarray, large: Large
) -> None:
    features, _ = pool.standard_features()

    def squared_error(query: list[str]) -> float:
        chosen = features[indices_of(query)]
        return float(np.square(features[:, None] - chosen).sum(-1).min(1).mean())

    exact = squared_error(diverse.kmeans(pool, N_GROUPS, rng()))
    drawn = squared_error([pool.ids[i] for i in rng().choice(len(groups), N_GROUPS, False)])
    large()
    query = diverse.kmeans(pool, N_GROUPS, rng())
    assert squared_error(query) < 1.2 * exact < 0.8 * drawn
    assert len(set(groups[indices_of(query)])) >= N_GROUPS - 1


def test_typiclust_of_batches_takes_typical_cases_of_uncovered_groups(
    pool: Candidates, groups: np.ndarray, large: Large
) -> None:
    large()
    query = indices_of(diverse.typiclust(pool, N_GROUPS - 1, rng()))
    assert len(set(groups[query]) - {0}) >= N_GROUPS - 3  # group 0 has the labelled ones
    features, _ = pool.standard_features()
    for index in query:
        group = features[groups == groups[index]]
        from_middle = np.linalg.norm(group - group.mean(axis=0), axis=1)
        own = np.linalg.norm(features[index] - group.mean(axis=0))
        assert own <= np.quantile(from_middle, 0.75)


def test_typicality_among_some_ranks_as_that_among_all(large: Large) -> None:
    points = rng(4).normal(size=(600, 3))
    members = np.arange(600)
    exact = feature_space.by_typicality(points, members, 20, rng())
    large()
    found = feature_space.by_typicality(points, members, 20, rng())
    assert sorted(found) == sorted(exact)
    ranks = np.empty((2, 600))
    for row, order in zip(ranks, (exact, found), strict=True):
        row[order] = np.arange(600)
    assert np.corrcoef(ranks)[0, 1] > 0.9


def test_a_drawn_member_is_not_its_own_neighbour(large: Large) -> None:
    large()
    # one far away: were it its own neighbour, its mean distance would be half of what it is
    points = np.concatenate([np.zeros((200, 2)), [[100.0, 0.0]]])
    order = feature_space.by_typicality(points, np.arange(201), 1, rng())
    assert order[-1] == 200


def test_features_are_standardised_in_blocks_as_at_once(large: Large) -> None:
    features = rng(5).normal(3, [1e-3, 1, 1e4, 0], size=(1000, 4)).astype(np.float32)
    exact = feature_space.standardised(features)
    large()
    found = feature_space.standardised(features)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=2e-5)
    assert not found[:, 3].any()  # it is the same everywhere


@pytest.mark.parametrize("name", ["k_center", "kmeans", "kmeans_plus_plus", "typiclust"])
def test_copies_are_no_special_case(name: str, large: Large) -> None:
    large()
    pool = candidates_of(
        scores=np.ones(120),
        features=np.ones((120, 2), dtype=np.float32),
        labelled_features=np.ones((3, 2), dtype=np.float32),
    )
    assert len(set(getattr(diverse, name)(pool, 7, rng()))) == 7


def test_small_pools_are_clustered_as_scikit_learn_does(
    pool: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Any] = []

    class Watched(KMeans):
        def fit(self, *arguments: Any, **keywords: Any) -> Any:
            used.append(arguments[0].dtype)
            return super().fit(*arguments, **keywords)

    monkeypatch.setattr(feature_space, "KMeans", Watched)
    diverse.kmeans(pool, 5, rng())
    diverse.typiclust(pool, 5, rng())
    assert used == [np.float64, np.float64]
