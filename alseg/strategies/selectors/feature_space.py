"""Distances, clusters and typicality of many feature vectors.

Up to ``MOST_EXACT`` vectors everything is exact, in float64. Above, in float32, the nearest centre
is found by matrix products, clusters by mini-batches, and typicality among at most
``MOST_REFERENCES`` members of a cluster, so that time and memory grow as the number of vectors.
docs/growth.md says what that changes in a query.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches

MOST_EXACT = 20_000  # vectors; the slowest selector takes about 10 s for them
MOST_REFERENCES = 4_000  # members of a cluster among which neighbours are looked for
BLOCK = 4_096  # rows that are worked on at once, which a processor's cache holds
N_STARTS = 3  # of k-means, the best of which counts


def is_large(n_points: int) -> bool:
    """Whether that many vectors are too many for the exact ways."""
    return n_points > MOST_EXACT


def standardised(points: np.ndarray) -> np.ndarray:
    """Vectors [n, d], each number centred and scaled to unit variance; a constant one becomes 0."""
    if is_large(len(points)):
        return _standardised_in_blocks(points)
    points = points.astype(np.float64)
    deviation = points.std(axis=0)
    varies = _varies(deviation, np.abs(points).max(axis=0, initial=0))
    return np.where(varies, points - points.mean(axis=0), 0) / np.where(varies, deviation, 1)


def _standardised_in_blocks(points: np.ndarray) -> np.ndarray:
    scaler, largest = StandardScaler(), np.zeros(points.shape[1])
    for rows in _blocks(points):
        block = points[rows].astype(np.float64)
        scaler.partial_fit(block)
        largest = np.maximum(largest, np.abs(block).max(axis=0))
    deviation = np.sqrt(scaler.var_)
    varies = _varies(deviation, largest)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
    found = np.empty(points.shape, dtype=np.float32)
    for rows in _blocks(points):
        found[rows] = (points[rows] - scaler.mean_) * scale
    return found


def _varies(deviation: np.ndarray, largest: np.ndarray) -> np.ndarray:
    # relative: rounding leaves a constant column with a deviation of about 1e-16 times its size
    found: np.ndarray = deviation > 1e-9 * largest
    return found


def _blocks(points: np.ndarray) -> Iterator[slice]:
    return gen_batches(len(points), BLOCK)


def squared_distance(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """[n, d] and [d] -> [n]. As a difference, not |a|² - 2ab + |b|²: copies are at exactly 0."""
    found = np.empty(len(points), dtype=points.dtype)
    for rows in _blocks(points):
        found[rows] = np.square(points[rows] - centre).sum(axis=1)
    return found


def squared_distance_to_nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """[n, d] and [m, d] -> [n]; infinite without centres."""
    distance = np.full(len(points), np.inf, dtype=points.dtype)
    if is_large(len(points)) and len(centres):
        # which is the nearest by products; how far it is by a difference, so copies are at 0
        nearest = pairwise_distances_argmin(points, centres)
        for rows in _blocks(points):
            distance[rows] = np.square(points[rows] - centres[nearest[rows]]).sum(axis=1)
        return distance
    for centre in centres:
        distance = np.minimum(distance, squared_distance(points, centre))
    return distance


def clusters(
    points: np.ndarray,
    n_clusters: int,
    rng: np.random.Generator,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """k-means: the cluster of each point [n] and the centres [k, d]."""
    seed = int(rng.integers(2**31))
    if is_large(len(points)):
        model = MiniBatchKMeans(
            n_clusters, n_init=N_STARTS, batch_size=BLOCK, random_state=seed, compute_labels=True
        )
    else:
        model = KMeans(n_clusters, n_init=N_STARTS, random_state=seed)
    with warnings.catch_warnings():
        # fewer distinct points than clusters: some stay empty, which the callers allow for
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(points, sample_weight=weights)
    return model.labels_, model.cluster_centers_


def by_typicality(
    points: np.ndarray, members: np.ndarray, n_neighbours: int, rng: np.random.Generator
) -> np.ndarray:
    """The members of a cluster, the most typical first.

    The typicality of one is the inverse of its mean distance to its ``n_neighbours`` nearest
    neighbours in the cluster.

    Args:
        points: all vectors, [n, d].
        members: the indices of those in the cluster.
        n_neighbours: at most; all others in a cluster of fewer.
        rng: draws those among which neighbours are looked for, where these are too many.
    """
    if len(members) < 2:
        return members
    if is_large(len(points)) and len(members) > MOST_REFERENCES:
        spread = _spread_among_some(points, members, n_neighbours, rng)
    else:
        n_used = min(n_neighbours, len(members) - 1)
        # Without an argument, a point is not its own neighbour.
        spread = NearestNeighbors(n_neighbors=n_used).fit(points[members]).kneighbors()[0].mean(1)
    return members[np.argsort(spread, kind="stable")]


def _spread_among_some(
    points: np.ndarray, members: np.ndarray, n_neighbours: int, rng: np.random.Generator
) -> np.ndarray:
    """The mean distance of each member to its nearest neighbours among some of them."""
    drawn = np.sort(rng.choice(len(members), MOST_REFERENCES, replace=False))
    neighbours = NearestNeighbors(n_neighbors=n_neighbours + 1).fit(points[members[drawn]])
    distance = neighbours.kneighbors(points[members])[0]
    # the nearest neighbour of a member that was drawn is itself
    is_drawn = np.zeros(len(members), dtype=bool)
    is_drawn[drawn] = True
    total = distance.sum(axis=1)
    own_or_farthest = np.where(is_drawn, distance[:, 0], distance[:, -1])
    return (total - own_or_farthest) / n_neighbours
