"""Selectors: from the candidates' scores and features to the query, a list of distinct case ids.

A selector takes the candidates, the query size k (at most their number n) and a seeded generator,
and returns ids in the order of acquisition. Candidates arrive sorted by id and ties go to the
smaller id, so the result depends neither on the order in which the pool was scored nor on anything
random but the generator. None needs more than O(n d) memory for features of d numbers, and equal
scores or features are no special case. A new selector is one function here and one YAML under
conf/strategy; keyword arguments are set in YAML beside ``_partial_: true``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors


@dataclass(frozen=True)
class Candidates:
    """The unlabelled cases of a round, sorted by id.

    Attributes:
        ids: the case ids, n of them.
        scores: one finite score a case, shape [n]; None if the strategy has no measure.
        class_scores: one score a case and foreground class, shape [n, C - 1], where the strategy
            asks for them.
        features: a feature vector a case, shape [n, d], where the strategy asks for them.
        labelled_features: the same of the m labelled cases, shape [m, d].
        similarity: how much each image resembles the labelled ones, in [0, 1], shape [n], where the
            strategy asks for it.
        round_number: the round that acquires, from 1.
        n_rounds: rounds of the run; the last one acquires nothing.
    """

    ids: tuple[str, ...]
    scores: np.ndarray | None = None
    class_scores: np.ndarray | None = None
    features: np.ndarray | None = None
    labelled_features: np.ndarray | None = None
    similarity: np.ndarray | None = None
    round_number: int = 1
    n_rounds: int = 2

    @property
    def progress(self) -> float:
        """How far the acquisitions are: 0 at the first, 1 at the last; 0 if there is but one."""
        return (self.round_number - 1) / max(self.n_rounds - 2, 1)

    def require_scores(self) -> np.ndarray:
        """The scores.

        Raises:
            ValueError: if there are none, because the strategy has no measure.
        """
        if self.scores is None:
            raise ValueError("this selector needs scores: give the strategy a measure")
        return self.scores

    def require_class_scores(self) -> np.ndarray:
        """The scores by class.

        Raises:
            ValueError: if there are none.
        """
        if self.class_scores is None:
            raise ValueError("this selector needs class scores: give the strategy class_scores")
        return self.class_scores

    def require_similarity(self) -> np.ndarray:
        """The similarities to the labelled images.

        Raises:
            ValueError: if there are none.
        """
        if self.similarity is None:
            raise ValueError("this selector compares images: give the strategy a similarity")
        return self.similarity

    def standard_features(self) -> tuple[np.ndarray, np.ndarray]:
        """Features of the candidates [n, d] and of the labelled cases [m, d], standardised.

        Each number is centred and scaled to unit variance over both together, so that no channel
        rules the distances for its scale; one that is the same in all cases becomes 0.

        Raises:
            ValueError: if there are none.
        """
        if self.features is None:
            raise ValueError("this selector needs features: give the strategy features")
        labelled = self.labelled_features
        if labelled is None:
            labelled = np.empty((0, self.features.shape[1]))
        both = np.concatenate([self.features, labelled]).astype(np.float64)
        deviation = both.std(axis=0)
        # relative: rounding leaves a constant column with a deviation of about 1e-16 times its size
        varies = deviation > 1e-9 * np.abs(both).max(axis=0, initial=0)
        both = np.where(varies, both - both.mean(axis=0), 0) / np.where(varies, deviation, 1)
        return both[: len(self.ids)], both[len(self.ids) :]

    def subset(self, indices: np.ndarray) -> Candidates:
        """Some of the candidates, sorted by id again."""
        kept = np.sort(indices)

        def rows(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[kept]

        return replace(
            self,
            ids=tuple(self.ids[i] for i in kept),
            scores=rows(self.scores),
            class_scores=rows(self.class_scores),
            features=rows(self.features),
            similarity=rows(self.similarity),
        )


Selector = Callable[[Candidates, int, np.random.Generator], list[str]]
Schedule = Callable[[float], float]  # from progress in [0, 1] to a value


def top_k(candidates: Candidates, query_size: int, rng: np.random.Generator) -> list[str]:
    """The ``query_size`` highest scores; equal scores in the order of their case ids.

    Bias: alike volumes are all uncertain at once, so a query tends to repeat itself.
    """
    return _highest(candidates, candidates.require_scores(), query_size)


def random(candidates: Candidates, query_size: int, rng: np.random.Generator) -> list[str]:
    """Cases drawn uniformly without replacement: the baseline that a strategy has to beat."""
    order = rng.permutation(len(candidates.ids))
    return [candidates.ids[i] for i in order[:query_size]]


# Noisy rankings: top-k of perturbed scores, which is a draw without replacement.


def geometric(progress: float, *, start: float = 1.0, end: float = 100.0) -> float:
    """A schedule from ``start`` at the first acquisition to ``end`` at the last, by equal factors.

    With 1 and 100: beta = 100^(t / (T_rounds - 1)), nearly random at first, nearly top-k in the
    end. Source: ClaSP PE, the follow-up of nnActive (Lüth et al.).
    """
    return start * (end / start) ** progress


def power(
    candidates: Candidates,
    query_size: int,
    rng: np.random.Generator,
    *,
    beta: float | Schedule = 1.0,
) -> list[str]:
    """Power acquisition: top-k of log s + Gumbel(0, 1/beta), a draw with probability ~ s^beta.

    A score of 0 (or below) has no logarithm: such cases come after all with a positive score, in
    random order.

    Source: Kirsch et al., "Stochastic batch acquisition: a simple baseline for deep active
    learning" (2021), table 1, PowerBALD.

    Args:
        candidates: the unlabelled cases.
        query_size: how many to choose.
        rng: draws the noise.
        beta: coldness > 0, or a schedule over the acquisitions; 0 would be ``random``, infinity
            ``top_k``.
    """
    scores = candidates.require_scores()
    coldness = _positive("beta", beta(candidates.progress) if callable(beta) else beta)
    noise = rng.gumbel(size=len(scores))
    positive = scores > 0
    # Times beta instead of noise over beta: the same order.
    keys = coldness * np.log(np.where(positive, scores, 1.0)) + noise
    order = np.lexsort((-keys, ~positive))  # positive scores first, then by falling key
    return [candidates.ids[i] for i in order[:query_size]]


def softrank(
    candidates: Candidates, query_size: int, rng: np.random.Generator, *, beta: float = 1.0
) -> list[str]:
    """Top-k of -log rank + Gumbel(0, 1/beta): probability ~ rank^-beta, whatever the scores' scale.

    Rank 1 is the highest score; equal scores share the mean of their ranks, so no id is preferred.

    Source: Kirsch et al. (2021), table 1, SoftrankBALD.
    """
    scores = candidates.require_scores()
    keys = -_positive("beta", beta) * np.log(_ranks(scores)) + rng.gumbel(size=len(scores))
    return _highest(candidates, keys, query_size)


def gibbs(
    candidates: Candidates, query_size: int, rng: np.random.Generator, *, temperature: float
) -> list[str]:
    """Draws without replacement with probability softmax(s / temperature), by Gumbel top-k.

    The temperature has the unit of the scores: one that suits a mean entropy does not suit a sum.

    Source: Kirsch et al. (2021), table 1, SoftmaxBALD.
    """
    scores = candidates.require_scores()
    keys = scores / _positive("temperature", temperature) + rng.gumbel(size=len(scores))
    return _highest(candidates, keys, query_size)


def stochastic_batch(
    candidates: Candidates, query_size: int, rng: np.random.Generator
) -> list[str]:
    """Shuffle the candidates into groups of the query size, take the group of highest mean score.

    What is left over after the last full group is left out of this query. The order within the
    group is that of the scores. Bias: between random (one group) and top-k; the groups are as
    diverse as the pool.

    Source: Gaillochet, Desrosiers, Lombaert, "Active learning for medical image segmentation with
    stochastic batches" (Medical Image Analysis, 2023).
    """
    scores = candidates.require_scores()
    n_groups = len(scores) // query_size
    groups = rng.permutation(len(scores))[: n_groups * query_size].reshape(n_groups, query_size)
    best = groups[np.argmax(scores[groups].mean(axis=1))]
    best = np.sort(best)
    order = best[np.argsort(-scores[best], kind="stable")]
    return [candidates.ids[i] for i in order]


# By class.


def class_stratified(
    candidates: Candidates,
    query_size: int,
    rng: np.random.Generator,
    *,
    fraction: float = 0.66,
    rank: Selector = top_k,
) -> list[str]:
    """Share a fraction of the query equally between the foreground classes.

    round(fraction k) cases are taken in turn for each class, the next one in that class's own
    ranking that has not been taken; the rest follows the plain score. The order of the classes is
    drawn, so that the odd places do not always go to the same one. A class whose score is 0 in all
    candidates has no ranking and takes no turn.

    Source: ClaSP PE, the follow-up of nnActive (Lüth et al.), with ``rank=power``.

    Args:
        candidates: with ``class_scores`` [n, C - 1] and scores.
        query_size: how many to choose.
        rng: draws the order of the classes and what ``rank`` draws.
        fraction: in [0, 1].
        rank: a selector by score, which makes each ranking.
    """
    n_candidates = len(candidates.ids)
    by_class = candidates.require_class_scores()
    ranked = [
        rank(replace(candidates, scores=by_class[:, c]), n_candidates, rng)
        for c in rng.permutation(by_class.shape[1])
        if by_class[:, c].max() > 0
    ]
    return _in_turns(
        ranked, rank(candidates, n_candidates, rng), query_size, _share(fraction, query_size)
    )


def class_balanced_random(
    candidates: Candidates, query_size: int, rng: np.random.Generator, *, fraction: float = 0.66
) -> list[str]:
    """Draw a fraction of the query among the cases that hold a class, each class in turn.

    As ``class_stratified``, but each class's ranking is a random order of the cases with a positive
    class score, and the rest of the query is drawn from all cases. With the true voxel counts as
    class scores it is nnActive's foreground-aware random baseline, for whole volumes instead of
    patches: there a share of 0.66 of the patches is drawn from those that hold a class that is
    drawn first, here the same share of the volumes.

    Source: nnActive (Lüth et al., 2025), the baseline "random 66% foreground".
    """
    by_class = candidates.require_class_scores()

    def shuffled(indices: np.ndarray) -> list[str]:
        return [candidates.ids[i] for i in rng.permutation(indices)]

    ranked = [
        shuffled(np.flatnonzero(by_class[:, c] > 0)) for c in rng.permutation(by_class.shape[1])
    ]
    rest = shuffled(np.arange(len(candidates.ids)))
    return _in_turns(ranked, rest, query_size, _share(fraction, query_size))


# By features.


def k_center(candidates: Candidates, query_size: int, rng: np.random.Generator) -> list[str]:
    """Core-set: again and again the case farthest from all labelled and chosen ones.

    Greedy 2-approximation of the k-center problem in standardised feature space: argmax_i min_j
    |f_i - f_j|, j over labelled and chosen. Without labelled features the first case is drawn.
    Memory O(n), time O((m + k) n d).

    Bias: outliers first, strange and broken scans among them. Source: Sener and Savarese, "Active
    learning for convolutional neural networks: a core-set approach" (ICLR 2018), algorithm 1.
    """
    features, labelled = candidates.standard_features()
    distance = np.full(len(features), np.inf)  # squared, to the nearest centre
    for centre in labelled:
        distance = np.minimum(distance, _squared_distance(features, centre))
    chosen: list[int] = []
    while len(chosen) < query_size:
        first = not chosen and not len(labelled)
        farthest = int(rng.integers(len(features))) if first else int(np.argmax(distance))
        chosen.append(farthest)
        distance = np.minimum(distance, _squared_distance(features, features[farthest]))
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
    vectors = features / np.where(length > 0, length, 1) * scores[:, None]
    chosen = [int(np.argmax(np.linalg.norm(vectors, axis=1)))]
    distance = _squared_distance(vectors, vectors[chosen[0]])
    while len(chosen) < query_size:
        distance[chosen] = 0.0
        weight = distance if distance.sum() > 0 else np.ones(len(vectors))
        weight[chosen] = 0.0
        chosen.append(int(rng.choice(len(vectors), p=weight / weight.sum())))
        distance = np.minimum(distance, _squared_distance(vectors, vectors[chosen[-1]]))
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
    cluster, centres = _clusters(features, query_size, rng, weights)
    heaviest = np.argsort(-np.bincount(cluster, weights, minlength=len(centres)), kind="stable")
    free = np.ones(len(features), dtype=bool)
    chosen: list[str] = []
    for index in heaviest:
        distance = np.where(free, _squared_distance(features, centres[index]), np.inf)
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
) -> list[str]:
    """TypiClust: the most typical case of each of the largest clusters that hold no labelled case.

    All features, labelled ones too, fall into min(m + k, ``max_clusters``) clusters. Again and
    again the cluster with the fewest labelled or chosen cases is taken (the larger one of two), and
    in it the candidate with the highest typicality, the smallest mean distance to its nearest
    neighbours within the cluster.

    Bias: the opposite of ``k_center``, common cases first: meant for small budgets, where outliers
    teach little. Memory O(n d).

    Source: Hacohen, Dekel, Weinshall, "Active learning on a budget: opposite strategies suit high
    and low budgets" (ICML 2022), algorithm 1. Their features are self-supervised, on 100 times as
    many images; clusters below 5 cases are kept here, as pools of volumes are small.
    """
    features, labelled = candidates.standard_features()
    both = np.concatenate([features, labelled])
    n_clusters = min(len(labelled) + query_size, max_clusters, len(both))
    cluster, _ = _clusters(both, n_clusters, rng)
    taken = np.bincount(cluster[len(features) :], minlength=n_clusters)
    size = np.bincount(cluster, minlength=n_clusters)
    waiting = {
        c: _by_typicality(both, np.flatnonzero(cluster == c), len(features), n_neighbours)
        for c in range(n_clusters)
    }
    chosen: list[str] = []
    while len(chosen) < query_size:
        open_clusters = [c for c, indices in waiting.items() if indices]
        best = min(open_clusters, key=lambda c: (taken[c], -size[c], c))
        taken[best] += 1
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
    density = (1 + unit @ unit.mean(axis=0)) / 2
    keys = _non_negative(candidates.require_scores()) * np.maximum(density, 0) ** beta
    return _highest(candidates, keys, query_size)


def prefilter(
    candidates: Candidates,
    query_size: int,
    rng: np.random.Generator,
    *,
    multiple: float,
    then: Selector,
) -> list[str]:
    """The ``multiple`` x k highest scores, of which another selector, a diverse one, chooses.

    Source: the two steps of suggestive annotation, Yang et al. (MICCAI 2017), section 2.3.

    Args:
        candidates: the unlabelled cases.
        query_size: k.
        rng: handed on.
        multiple: at least 1; 1 is ``top_k``.
        then: chooses k of those that are left.
    """
    if not multiple >= 1:
        raise ValueError(f"multiple is {multiple}; it must be at least 1")
    n_kept = max(query_size, round(multiple * query_size))
    order = np.argsort(-candidates.require_scores(), kind="stable")
    return then(candidates.subset(order[:n_kept]), query_size, rng)


def _highest(candidates: Candidates, keys: np.ndarray, query_size: int) -> list[str]:
    # A stable sort of the negated keys keeps the id order within ties.
    order = np.argsort(-keys, kind="stable")
    return [candidates.ids[i] for i in order[:query_size]]


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks from 1 for the highest score; equal scores share their mean rank."""
    _, group, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]


def _positive(name: str, value: float) -> float:
    if not 0 < value < np.inf:
        raise ValueError(f"{name} is {value}; it must be a positive number")
    return value


def _non_negative(scores: np.ndarray) -> np.ndarray:
    return np.maximum(scores, 0.0)


def _share(fraction: float, query_size: int) -> int:
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; it must lie in [0, 1]")
    return round(fraction * query_size)


def _in_turns(
    rankings: list[list[str]], rest: list[str], query_size: int, n_in_turns: int
) -> list[str]:
    """Take ``n_in_turns`` ids from the rankings in turn, then fill up from ``rest``."""
    chosen: dict[str, None] = {}  # an ordered set
    waiting = [iter(ranking) for ranking in rankings]
    while waiting and len(chosen) < n_in_turns:
        ranking = waiting.pop(0)
        fresh = next((case_id for case_id in ranking if case_id not in chosen), None)
        if fresh is not None:
            chosen[fresh] = None
            waiting.append(ranking)
    for case_id in rest:
        if len(chosen) == query_size:
            break
        chosen[case_id] = None
    return list(chosen)


def _squared_distance(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """[n, d] and [d] -> [n]. As a difference, not |a|² - 2ab + |b|²: copies are at exactly 0."""
    return np.square(points - centre).sum(axis=1)


def _clusters(
    points: np.ndarray,
    n_clusters: int,
    rng: np.random.Generator,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """k-means: the cluster of each point [n] and the centres [k, d]."""
    model = KMeans(n_clusters, n_init=3, random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings():
        # fewer distinct points than clusters: some stay empty, which the callers allow for
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(points, sample_weight=weights)
    return model.labels_, model.cluster_centers_


def _by_typicality(
    points: np.ndarray, members: np.ndarray, n_candidates: int, n_neighbours: int
) -> list[int]:
    """The candidates among the members of a cluster, the most typical first."""
    if len(members) < 2:
        return [int(i) for i in members if i < n_candidates]
    n_used = min(n_neighbours, len(members) - 1)
    # Without an argument, a point is not its own neighbour.
    neighbours = NearestNeighbors(n_neighbors=n_used).fit(points[members])
    spread = neighbours.kneighbors()[0].mean(axis=1)
    order = members[np.argsort(spread, kind="stable")]
    return [int(i) for i in order if i < n_candidates]
