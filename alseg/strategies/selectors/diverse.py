"""Selectors that look for cases unlike each other, or unlike the labelled ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from alseg.strategies.selectors.candidates import Candidates
from alseg.strategies.selectors.feature_space import (
    by_typicality,
    clusters,
    squared_distance,
    squared_distance_to_nearest,
)
from alseg.strategies.selectors.ranked import highest, top_k


def k_center(candidates: Candidates, query_size: int, rng: np.random.Generator) -> list[str]:
    """Core-set: again and again the case farthest from all labelled and chosen ones.

    Greedy 2-approximation of the k-center problem in standardised feature space: argmax_i min_j
    |f_i - f_j|, j over labelled and chosen. Without labelled features the first case is drawn.
    Memory O(n), time O((m + k) n d).

    Bias: outliers first, strange and broken scans among them. Source: Sener and Savarese, "Active
    learning for convolutional neural networks: a core-set approach" (ICLR 2018), algorithm 1.
    """
    features, labelled = candidates.standard_features()
    distance = squared_distance_to_nearest(features, labelled)
    chosen: list[int] = []
    while len(chosen) < query_size:
        first = not chosen and not len(labelled)
        farthest = int(rng.integers(len(features))) if first else int(np.argmax(distance))
        chosen.append(farthest)
        distance = np.minimum(distance, squared_distance(features, features[farthest]))
        distance[chosen] = -1.0  # below the 0 of a copy of a centre
    return [candidates.ids[i] for i in chosen]


def kmeans_plus_plus(
    candidates: Candidates, query_size: int, rng: np.random.Generator
) -> list[str]:
    """BADGE for dense prediction: k-means++ seeding on features whose length is the uncertainty.

    BADGE draws from gradient embeddings of the last layer, (p - onehot) x h: their length grows
    with the uncertainty and their direction says what the image holds. For a segmentation that
    embedding is a sum over millions of voxels in which opposite errors cancel, and it names the
    last layer of one architecture. The closest honest form keeps the two properties: the unit
    vector of the standardised features times the score (0 where that is negative).

    The first case is the longest vector; each next one is drawn with a probability that grows with
    its squared distance to the nearest one chosen, uniformly once all are 0. Memory O(n d).

    Source: Ash et al., "Deep batch active learning by diverse, uncertain gradient lower bounds"
    (ICLR 2020), algorithm 1; Arthur and Vassilvitskii (SODA 2007).
    """
    features, _ = candidates.standard_features()
    length = np.linalg.norm(features, axis=1, keepdims=True)
    scores = _non_negative(candidates.require_scores())
    # relative to the largest, so that the squares of tiny scores do not vanish
    scores = scores / max(scores.max(), np.finfo(np.float64).tiny)
    vectors = features / np.where(length > 0, length, 1) * scores[:, None].astype(features.dtype)
    chosen = [int(np.argmax(np.linalg.norm(vectors, axis=1)))]
    distance = squared_distance(vectors, vectors[chosen[0]])
    while len(chosen) < query_size:
        distance[chosen] = 0.0
        weight = (distance if distance.sum() > 0 else np.ones(len(vectors))).astype(np.float64)
        weight[chosen] = 0.0
        chosen.append(int(rng.choice(len(vectors), p=weight / weight.sum())))
        distance = np.minimum(distance, squared_distance(vectors, vectors[chosen[-1]]))
    return [candidates.ids[i] for i in chosen]


def kmeans(candidates: Candidates, query_size: int, rng: np.random.Generator) -> list[str]:
    """k clusters of the features, weighted by score; the candidate nearest to each centre.

    Scores below 0 weigh 0; all weigh the same where no score is positive or there are none. The
    heaviest cluster comes first. Memory O(n d), time O(n k d) an iteration.

    Source: Zhdanov, "Diverse mini-batch active learning" (2019), equation 4.
    """
    features, _ = candidates.standard_features()
    weights = np.ones(len(features))
    if candidates.scores is not None and candidates.scores.max() > 0:
        weights = _non_negative(candidates.scores)
    cluster, centres = clusters(features, query_size, rng, weights)
    heaviest = np.argsort(-np.bincount(cluster, weights, minlength=len(centres)), kind="stable")
    free = np.ones(len(features), dtype=bool)
    chosen: list[str] = []
    for index in heaviest:
        distance = np.where(free, squared_distance(features, centres[index]), np.inf)
        nearest = int(np.argmin(distance))
        free[nearest] = False
        chosen.append(candidates.ids[nearest])
    return chosen


def typiclust(
    candidates: Candidates,
    query_size: int,
    rng: np.random.Generator,
    *,
    n_neighbours: int = 20,
    max_clusters: int = 500,
    min_size: int = 1,
) -> list[str]:
    """TypiClust: the most typical case of each of the largest clusters that hold no labelled case.

    All features, labelled ones too, fall into min(m + k, ``max_clusters``) clusters. Again and
    again the cluster with the fewest labelled or chosen cases is taken (the larger one of two), and
    in it the candidate with the highest typicality, the smallest mean distance to its nearest
    neighbours within the cluster. Clusters of fewer than ``min_size`` cases, outliers among
    themselves, come last.

    Bias: the opposite of ``k_center``, common cases first: meant for small budgets, where outliers
    teach little. Memory O(n d).

    Source: Hacohen, Dekel, Weinshall, "Active learning on a budget: opposite strategies suit high
    and low budgets" (ICML 2022), algorithm 1. Their features are self-supervised, on 100 times as
    many images; clusters below 5 cases are kept here, as pools of volumes are small.
    """

    def order(points: np.ndarray, members: np.ndarray) -> np.ndarray:
        return by_typicality(points, members, n_neighbours, rng)

    return _of_uncovered_clusters(candidates, query_size, rng, max_clusters, order, min_size)


def typical_to_uncertain(
    candidates: Candidates,
    query_size: int,
    rng: np.random.Generator,
    *,
    n_neighbours: int = 20,
    max_clusters: int = 500,
) -> list[str]:
    """TypiClust at first, and in its clusters more and more the highest scores.

    As ``typiclust``, except for which candidate of a cluster comes first: that of the lowest
    (1 - p) t + p u, where t and u are its ranks in the cluster by typicality and by score, and p is
    the progress, 0 at the first acquisition and 1 at the last. Each query is still spread over the
    clusters that hold no labelled case.

    Bias: common cases at first, uncertain ones at the end. Memory O(n d).

    Source: Hacohen, Dekel, Weinshall (ICML 2022), where small budgets want typical cases
    and large ones uncertain cases; the schedule between them is ours.
    """
    scores, progress = candidates.require_scores(), candidates.progress

    def order(points: np.ndarray, members: np.ndarray) -> np.ndarray:
        typical = by_typicality(points, members, n_neighbours, rng)
        typical = typical[typical < len(scores)]
        by_score = np.argsort(np.argsort(-scores[typical], kind="stable"), kind="stable")
        both_ranks = (1 - progress) * np.arange(len(typical)) + progress * by_score
        return typical[np.argsort(both_ranks, kind="stable")]

    return _of_uncovered_clusters(candidates, query_size, rng, max_clusters, order)


def _of_uncovered_clusters(
    candidates: Candidates,
    query_size: int,
    rng: np.random.Generator,
    max_clusters: int,
    order: Callable[[np.ndarray, np.ndarray], np.ndarray],
    min_size: int = 1,
) -> list[str]:
    """Again and again the first case of the cluster with the fewest labelled or chosen ones.

    Args:
        candidates: the unlabelled cases, with features.
        query_size: how many to choose.
        rng: of the clusters.
        max_clusters: at most so many clusters.
        order: of all features [n + m, d] and the indices of a cluster's members, those below n in
            the order in which they are to be taken.
        min_size: smaller clusters come last.
    """
    features, labelled = candidates.standard_features()
    both = np.concatenate([features, labelled])
    n_clusters = min(len(labelled) + query_size, max_clusters, len(both))
    cluster, _ = clusters(both, n_clusters, rng)
    taken = np.bincount(cluster[len(features) :], minlength=n_clusters)
    size = np.bincount(cluster, minlength=n_clusters)
    left = np.bincount(cluster[: len(features)], minlength=n_clusters)
    waiting: dict[int, list[int]] = {}  # the candidates of the clusters that have been looked into
    chosen: list[str] = []
    while len(chosen) < query_size:
        best = min(
            np.flatnonzero(left).tolist(),
            key=lambda c: (size[c] < min_size, taken[c], -size[c], c),
        )
        if best not in waiting:
            members = order(both, np.flatnonzero(cluster == best))
            waiting[best] = members[members < len(features)].tolist()
        taken[best] += 1
        left[best] -= 1
        chosen.append(candidates.ids[waiting[best].pop(0)])
    return chosen


def density_weighted(
    candidates: Candidates, query_size: int, rng: np.random.Generator, *, beta: float = 1.0
) -> list[str]:
    """Top-k of score times density^beta: uncertain, but no outlier.

    The density is the mean over all candidates j of (1 + cos(f_i, f_j)) / 2, in [0, 1]; the mean of
    cosines is the cosine with the mean unit vector, so it takes O(n d) and no n x n matrix. Scores
    below 0 count as 0.

    Source: Settles and Craven, "An analysis of active learning strategies for sequence labeling
    tasks" (EMNLP 2008), section 3.4, information density.
    """
    features, _ = candidates.standard_features()
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length > 0, length, 1)
    mean = unit.mean(axis=0, dtype=np.float64).astype(unit.dtype)
    density = (1 + unit @ mean) / 2
    keys = _non_negative(candidates.require_scores()) * np.maximum(density, 0) ** beta
    return highest(candidates, keys, query_size)


def _non_negative(scores: np.ndarray) -> np.ndarray:
    return np.maximum(scores, 0.0)


def mi_diversity(
    candidates: Candidates, query_size: int, rng: np.random.Generator, *, alpha: float = 1.0
) -> list[str]:
    """Top-k of alpha u - s / alpha: uncertain, and unlike the labelled images.

    u is the score and s the similarity to the labelled images, each scaled to [0, 1] over the
    candidates (all equal: 0), so that neither rules by its unit; the paper normalises both and does
    not say how. As in the paper the query is a top-k: its cases are not compared with each other.

    Source: Nath et al. (2020), Score = alpha H - (1 / alpha) MI.

    Args:
        candidates: the unlabelled cases, with scores and similarities.
        query_size: how many to choose.
        rng: not used.
        alpha: above 0; 1 weighs both alike, a large one is ``top_k``. The paper's value is not
            known to us.
    """
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha is {alpha}; it must be a positive number")
    uncertainty = _to_unit_range(candidates.require_scores())
    similarity = _to_unit_range(candidates.require_similarity())
    keys = alpha * uncertainty - similarity / alpha
    return top_k(replace(candidates, scores=keys), query_size, rng)


def _to_unit_range(values: np.ndarray) -> np.ndarray:
    span = np.ptp(values)
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)
