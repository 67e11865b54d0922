"""Strategies on regions: the best boxes of a map, by score and by class."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alseg.core.errors import ConfigError, ScoringError
from alseg.core.units import overlap
from alseg.strategies import aggregations, measures
from alseg.strategies.image_similarity import ImageSimilarity
from alseg.strategies.places import AxisPlaces, Places
from alseg.strategies.regions import (
    annotated_regions,
    check_for_regions,
    foreground_share,
    looks_at_regions,
    score_regions,
)
from alseg.strategies.selectors.balanced import class_balanced_random, class_stratified
from alseg.strategies.selectors.diverse import k_center, mi_diversity
from alseg.strategies.selectors.noisy import random
from alseg.strategies.selectors.ranked import top_k
from alseg.strategies.statistics import VoxelStatistics
from alseg.strategies.strategy import Strategy, candidates_from, feature_vector

SHAPE = (9, 8, 7)
ENTROPY = Strategy("entropy", top_k, measures.entropy, aggregations.mean)
CLASP = Strategy(
    "clasp_pe", class_stratified, measures.entropy, aggregations.mean, measures.class_entropy
)


def places_of(size: tuple[int, int, int], *taken: Any) -> Places:
    """All boxes of a size in an unprocessed volume of ``SHAPE``."""
    starts = [np.arange(n - edge + 1) for n, edge in zip(SHAPE, size, strict=True)]
    first, second, third = (AxisPlaces(s, s, s + e) for s, e in zip(starts, size, strict=True))
    return Places(size, (0, 1, 2), (first, second, third), taken)


def statistics_of(seed: int, n_classes: int = 3) -> VoxelStatistics:
    statistics = VoxelStatistics()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        logits = 3 * torch.randn(n_classes, *SHAPE, generator=generator)
        statistics.update(torch.softmax(logits, dim=0))
    return statistics


def scored(strategy: Strategy, places: Places, n_regions: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    places = replace(places, n_most=n_regions)
    return score_regions(strategy, "a", statistics_of(seed), places, rng)


@pytest.mark.parametrize("aggregation", [aggregations.mean, partial(aggregations.sum)])
@pytest.mark.parametrize(
    "measure",
    [measures.entropy, measures.expected_entropy, measures.mutual_information, measures.variance],
)
def test_the_best_region_is_that_of_brute_force(measure: Any, aggregation: Any) -> None:
    strategy = Strategy("s", top_k, measure, aggregation)
    places = places_of((3, 2, 4))
    first, *others = scored(strategy, places, 4)
    volume = measure(statistics_of(0)).double()
    reduce = "mean" if aggregation is aggregations.mean else "sum"
    boxes = {
        p: getattr(volume[places.box(p)], reduce)() for p in product(*map(range, places.shape))
    }
    best = max(boxes, key=lambda place: float(boxes[place]))
    assert first.region == places.region(best)
    assert first.score == pytest.approx(float(boxes[best]), rel=1e-12)
    units = [first.region, *(s.region for s in others)]
    assert len(units) == 4
    assert not any(overlap(a, b) for i, a in enumerate(units) for b in units[:i])
    assert [first.score, *(s.score for s in others)] == sorted(
        [first.score, *(s.score for s in others)], reverse=True
    )
    assert {tuple(b - a for a, b in unit) for unit in units} == {(3, 2, 4)}
    assert first.n_passes == 3


def test_nothing_is_proposed_where_all_is_annotated() -> None:
    whole = tuple((0, n) for n in SHAPE)
    assert scored(ENTROPY, places_of((3, 3, 3), whole), 4) == []
    assert scored(Strategy("f", k_center, features="mean"), places_of((3, 3, 3), whole), 4) == []


def test_by_class_each_class_proposes_its_own_best_region() -> None:
    places = places_of((3, 3, 3))
    found = scored(CLASP, places, 6)
    assert len(found) == 6
    maps = list(measures.class_entropy_maps(statistics_of(0)))
    for number, volume in enumerate(maps):
        best = max(float(m) for m in places.means(volume).flatten())
        # the class's best box, unless another map has taken a part of it
        ours = [score.class_scores[number] for score in found]
        assert max(ours) <= best + 1e-12
        for score in found:
            box = tuple(slice(*edges) for edges in score.region)
            expected = volume[box].double().mean()
            assert score.class_scores[number] == pytest.approx(float(expected), rel=1e-12)
    total = max(float(m) for m in places.means(measures.entropy(statistics_of(0))).flatten())
    assert found[0].score == pytest.approx(total, rel=1e-12)
    whole = measures.class_entropy(statistics_of(0))
    assert [float(m.double().mean()) for m in maps] == pytest.approx(whole.tolist(), rel=1e-6)


def test_features_are_pooled_over_each_region_and_compared_with_the_annotated_ones() -> None:
    strategy = Strategy("core_set", k_center, features="mean")
    taken = ((0, 3), (0, 3), (0, 3))
    places = replace(places_of((3, 3, 3), taken), n_most=3)

    def features_of(box: tuple[slice, slice, slice]) -> Tensor:
        return torch.tensor([float(side.start) for side in box])

    rng = np.random.default_rng(0)
    found = score_regions(strategy, "a", statistics_of(0), places, rng, features_of)
    assert all(s.features == feature_vector(a for a, _ in s.region) for s in found)
    labelled = annotated_regions("a", places, features_of)
    assert [(s.region, s.features, s.labelled) for s in labelled] == [
        (taken, feature_vector((0, 0, 0)), True)
    ]
    candidates = candidates_from([*found, *labelled])
    assert len(candidates.ids) == 3
    assert candidates.labelled_features is not None
    assert candidates.ids == tuple(sorted(f"a[{r}]" for r in map(text_of, found)))
    assert len(strategy.select(candidates, 2, rng)) == 2


def text_of(score: Any) -> str:
    return ",".join(f"{start}:{stop}" for start, stop in score.region)


def test_a_map_that_is_no_number_somewhere_is_told_with_its_case() -> None:
    def broken(statistics: VoxelStatistics) -> Tensor:
        volume = torch.zeros(SHAPE)
        volume[4, 4, 4] = torch.nan
        return volume

    strategy = Strategy("s", top_k, broken, aggregations.mean)
    with pytest.raises(ScoringError, match="strategy s gave a a map with voxels that are NaN"):
        scored(strategy, places_of((3, 3, 3)), 2)


def test_random_places_are_uniform_over_those_that_are_free() -> None:
    places = places_of((9, 8, 1), ((0, 9), (0, 8), (2, 4)))
    rng = np.random.default_rng(0)
    drawn = [places.at_random(rng, 1)[0][2] for _ in range(500)]
    counts = np.bincount(drawn, minlength=7)
    assert counts[2:4].tolist() == [0, 0]
    assert all(60 < n < 140 for n in np.delete(counts, [2, 3]))
    assert sorted(p[2] for p in places.at_random(rng, 9)) == [0, 1, 4, 5, 6]


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (
            Strategy("s", top_k, measures.entropy, aggregations.boundary_mean),
            "the aggregation boundary_mean",
        ),
        (
            Strategy("s", top_k, measures.entropy, partial(aggregations.foreground_mean)),
            "the aggregation foreground_mean",
        ),
        (Strategy("s", mi_diversity, measures.entropy, aggregations.mean,
                  similarity=ImageSimilarity()), "a similarity of images"),
        (
            Strategy("s", class_stratified, measures.entropy, aggregations.mean,
                     measures.hidden_class_voxels),
            "the class scores hidden_class_voxels",
        ),
    ],
)  # fmt: skip
def test_what_looks_at_whole_volumes_is_refused(strategy: Strategy, message: str) -> None:
    with pytest.raises(ConfigError, match=f"strategy s has {message}, which is for whole volumes"):
        check_for_regions(strategy)


def test_the_others_are_not() -> None:
    check_for_regions(ENTROPY)
    check_for_regions(CLASP)
    check_for_regions(Strategy("random", random))
    balanced = partial(class_balanced_random, fraction=0.33)
    aware = Strategy("aware", balanced, class_scores=measures.hidden_class_voxels)
    check_for_regions(aware)
    assert foreground_share(aware) == 0.33
    assert foreground_share(Strategy("random", random)) is None
    assert [looks_at_regions(s) for s in (ENTROPY, aware)] == [True, False]
