"""The initial pool: which cases are labelled before the first round."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np

from alseg.core.errors import ConfigError
from alseg.core.pool import random_start
from alseg.data.cache import VolumeCache
from alseg.strategies.selectors.candidates import Candidates
from alseg.strategies.selectors.diverse import k_center, typiclust
from alseg.strategies.selectors.grouped import fresh_groups

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
    ``image_statistics``, ``typical`` takes the most typical case of each of as many clusters of
    them (TypiClust), at most one of a group, and of clusters of a few odd images none. Both read
    all training images, and no label and no network.

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
        features = np.array([image_statistics(cache, case_id) for case_id in ids])
        candidates, rng = Candidates(ids=ids, features=features), np.random.default_rng(seed)
        if start == "diverse":
            return tuple(k_center(candidates, size, rng))
        select = partial(typiclust, min_size=MIN_CLUSTER)
        return tuple(fresh_groups(candidates, size, rng, pattern=groups, then=select))
    raise ConfigError(f"pool.start is {start!r}, which is not chosen only by images")


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
