"""The initial pool: which cases are labelled before the first round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from alseg.core.errors import ConfigError
from alseg.core.groups import members_by_group
from alseg.core.pool import random_start
from alseg.data.cache import VolumeCache
from alseg.strategies.selectors.candidates import Candidates
from alseg.strategies.selectors.diverse import k_center, typiclust

# proxy: alseg.active.initial_pool_from_proxy, as it trains a network; labelled: what has a label
STARTS = ("random", "diverse", "typical", "proxy", "labelled")
MIN_CLUSTER = 5  # as TypiClust has it: images that resemble fewer others are odd
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def initial_cases(
    start: str,
    cache: VolumeCache,
    case_ids: Iterable[str],
    size: int,
    seed: int,
    groups: str | None = None,
) -> tuple[str, ...]:
    """Choose the cases that the first round starts with.

    All ways depend only on the seed and the images, so all strategies of a seed share them.
    ``diverse`` draws one case and then takes the case least like those chosen (k-center) by
    ``image_statistics``, ``typical`` takes ``typical_cases`` by them. Both read all training
    images, and no label and no network.

    Args:
        start: ``random``, ``diverse`` or ``typical``.
        cache: gives the volumes.
        case_ids: the training cases.
        size: how many to choose.
        seed: of the draw.
        groups: which cases belong together, as ``grouped_by`` takes it; ``typical`` looks at it.

    Raises:
        ConfigError: if it is another start.
    """
    ids = tuple(sorted(case_ids))
    if start == "random":
        return random_start(ids, size, seed)
    if start in ("diverse", "typical"):
        features = {case_id: image_statistics(cache, case_id) for case_id in ids}
        rng = np.random.default_rng(seed)
        if start == "typical":
            return typical_cases(features, size, rng, groups)
        candidates = Candidates(ids=ids, features=np.array(list(features.values())))
        return tuple(k_center(candidates, size, rng))
    raise ConfigError(f"pool.start is {start!r}, which is not chosen only by images")


def typical_cases(
    features: Mapping[str, np.ndarray], size: int, rng: np.random.Generator, groups: str | None
) -> tuple[str, ...]:
    """One case of each of the most typical groups, the groups' members in turn.

    TypiClust (see ``typiclust``) among the groups by the mean of their features: the most typical
    group of each of as many clusters, and of clusters of fewer than ``MIN_CLUSTER`` none as long as
    there are others. Of one group the first member is taken, of the next the second, and so on from
    a member that is drawn, by id: where the ids of a group's members tell times, sides or phases of
    the heart, each of them is taken about equally often, though features may not tell them apart.
    Where there are fewer groups than ``size``, those of all follow, each time among what is left.

    Args:
        features: of each case, [d].
        size: how many to choose, at most all.
        rng: of the clusters and of the first member.
        groups: which cases belong together, as ``grouped_by`` takes it.
    """
    offset = int(rng.integers(2**31))
    left = dict(sorted(members_by_group(sorted(features), groups).items()))
    chosen: list[str] = []
    while len(chosen) < size:
        means = np.array([np.mean([features[i] for i in members], 0) for members in left.values()])
        typical = typiclust(
            Candidates(ids=tuple(left), features=means),
            min(size - len(chosen), len(left)),
            rng,
            min_size=MIN_CLUSTER,
        )
        for name in typical:
            members = left[name]
            chosen.append(members.pop((offset + len(chosen)) % len(members)))
        left = {name: members for name, members in left.items() if members}
    return tuple(chosen)


def image_statistics(cache: VolumeCache, case_id: str) -> np.ndarray:
    """What a preprocessed image says without a label, one vector.

    For each channel the mean, the standard deviation, the mean absolute step between neighbours
    (texture and noise) and quantiles of the intensity; then the logarithms of the volume's edges in
    voxels and of the source's voxel spacing in mm.
    """
    entry = cache.image(case_id)
    parts: list[np.ndarray] = []
    for channel in entry["image"].numpy():  # [D, H, W]
        steps = [np.abs(np.diff(channel, axis=axis)).mean() for axis in range(3)]
        parts += [
            np.array([channel.mean(), channel.std(), np.mean(steps)]),
            np.quantile(channel, QUANTILES),
        ]
    spacing_mm = entry["source_affine"][:3, :3].norm(dim=0).numpy()
    parts += [np.log(entry["image"].shape[1:]), np.log(spacing_mm)]
    return np.concatenate(parts)
