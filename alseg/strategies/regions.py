"""What a strategy makes of the regions of a case: its best ones, and their scores.

A strategy for regions is one for volumes whose aggregation is the box: ``mean`` or ``sum`` over
the region's voxels instead of the volume's. Of each case its best regions that do not overlap are
kept, and the selector chooses from those of all cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alseg.core.errors import ConfigError, ScoringError
from alseg.strategies import aggregations
from alseg.strategies.measures import class_entropy, class_entropy_maps
from alseg.strategies.places import Box, Place, Places
from alseg.strategies.selectors.balanced import class_balanced_random
from alseg.strategies.statistics import VoxelStatistics
from alseg.strategies.strategy import CaseScore, Strategy, feature_vector

ClassMaps = Callable[[VoxelStatistics], Iterator[Tensor]]
# The maps [D, H, W] whose mean a class score is, one a foreground class.
CLASS_MAPS: Mapping[Any, ClassMaps] = {class_entropy: class_entropy_maps}


def check_for_regions(strategy: Strategy) -> None:
    """Check that a strategy can choose regions.

    Raises:
        ConfigError: if a part of it looks at whole volumes only.
    """
    aggregation = function_of(strategy.aggregation)
    by_class = function_of(strategy.class_scores)
    if aggregation not in (None, aggregations.mean, aggregations.sum):
        part, instead = (
            f"the aggregation {aggregation.__name__}",
            "strategy/aggregation=mean or sum",
        )
    elif strategy.similarity is not None:
        part, instead = "a similarity of images", "a strategy without one"
    elif by_class not in (None, *CLASS_MAPS) and foreground_share(strategy) is None:
        part, instead = f"the class scores {by_class.__name__}", "another selector"
    else:
        return
    raise ConfigError(
        f"strategy {strategy.name} has {part}, which is for whole volumes; with pool.unit=patch or "
        f"slice use {instead}"
    )


def function_of(part: Any) -> Any:
    """The function behind a part of a strategy, whose settings may be bound to it."""
    return part.func if isinstance(part, partial) else part


def foreground_share(strategy: Strategy) -> float | None:
    """The share of a query that is centred on foreground; None for other strategies."""
    if function_of(strategy.selector) is not class_balanced_random:
        return None
    settings = strategy.selector.keywords if isinstance(strategy.selector, partial) else {}
    return float(settings.get("fraction", class_balanced_random.__kwdefaults__["fraction"]))


def looks_at_regions(strategy: Strategy) -> bool:
    """Whether the network has to see a case before its regions are proposed."""
    return strategy.measure is not None or strategy.features is not None


def score_regions(
    strategy: Strategy,
    case_id: str,
    statistics: VoxelStatistics,
    places: Places,
    rng: np.random.Generator,
    features_of: Callable[[Box], Tensor] | None = None,
) -> list[CaseScore]:
    """The best regions of one case that overlap neither each other nor what is annotated.

    A strategy by class proposes regions by its score and by that of each class, equally many, as
    far as there are any; one with features and no score proposes random ones.

    Args:
        strategy: passes ``check_for_regions``.
        case_id: the case.
        statistics: of its passes.
        places: of its regions, with the largest number that is wanted.
        rng: draws random regions.
        features_of: gives the features [d] of a box of the grid, where the strategy asks for them.

    Raises:
        ScoringError: if a score or a feature is not finite.
    """
    voxels = None if strategy.measure is None else strategy.uncertainty_map(statistics)
    if voxels is not None and not math.isfinite(float(voxels.sum(dtype=torch.float64))):
        raise ScoringError(
            f"strategy {strategy.name} gave {case_id} a map with voxels that are NaN or infinite"
        )
    n_regions = places.n_most if places.n_most is not None else math.prod(places.shape)
    maps = CLASS_MAPS.get(function_of(strategy.class_scores), _no_maps)
    if voxels is None:
        chosen = places.at_random(rng, n_regions)
    else:
        chosen = _best(strategy, statistics, places, n_regions, voxels, maps)
    boxes = [places.box(place) for place in chosen]
    by_class = [[_box_score(strategy, m[box]) for box in boxes] for m in maps(statistics)]
    found = [
        CaseScore(
            case_id,
            None if voxels is None else _box_score(strategy, voxels[box]),
            tuple(scores[number] for scores in by_class) if by_class else None,
            None if features_of is None else feature_vector(features_of(box).tolist()),
            n_passes=statistics.n_passes,
            region=places.region(place),
        )
        for number, (place, box) in enumerate(zip(chosen, boxes, strict=True))
    ]
    for score in found:
        strategy.check_finite(score)
    return found


def annotated_regions(
    case_id: str, places: Places, features_of: Callable[[Box], Tensor]
) -> list[CaseScore]:
    """The annotated regions of a case, which candidates are compared with by their features."""
    vectors = {r: features_of(places.box(places.at(r))).tolist() for r in places.taken}
    return [
        CaseScore(case_id, features=feature_vector(vector), labelled=True, region=region)
        for region, vector in vectors.items()
    ]


def _no_maps(statistics: VoxelStatistics) -> Iterator[Tensor]:
    return iter(())


def _best(
    strategy: Strategy,
    statistics: VoxelStatistics,
    places: Places,
    n_regions: int,
    voxels: Tensor,
    maps: ClassMaps,
) -> list[Place]:
    """The best places by score, by each class that is anywhere, and for the rest by score again.

    One map is in memory at a time.
    """
    n_each = n_regions if maps is _no_maps else math.ceil(n_regions / len(statistics.mean))
    is_mean = function_of(strategy.aggregation) is aggregations.mean
    chosen: list[Place] = []

    def add(volume: Tensor, n_wanted: int, above: float = -math.inf) -> None:
        scores = places.means(volume) if is_mean else places.totals(volume)
        taken = [places.region(place) for place in chosen]
        best = places.best(scores, min(n_wanted, n_regions - len(chosen)), taken)
        chosen.extend(place for place, score in best if score > above)

    add(voxels, n_each)
    for volume in maps(statistics):
        add(volume, n_each, above=0.0)
    if n_each < n_regions:
        add(voxels, n_regions)
    return chosen


def _box_score(strategy: Strategy, inside: Tensor) -> float:
    """The strategy's aggregation over the voxels of a box."""
    total = float(inside.sum(dtype=torch.float64))
    is_mean = function_of(strategy.aggregation) is aggregations.mean
    return total / inside.numel() if is_mean else total
