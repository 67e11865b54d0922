"""What a plan is made from: headers of images and a sample of their voxels.

No label is read, so a plan cannot depend on labels that nobody has revealed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import nibabel
import numpy as np

from alseg.data.headers import check_image_headers
from alseg.data.task import Case, Task
from alseg.data.volumes import Header, read_volume

MAX_HEADERS = 500  # images whose headers are read
MAX_SAMPLED = 16  # images of which voxels are read, and
MAX_SAMPLED_BYTES = 2**30  # of them together, uncompressed
N_VOXELS = 100_000  # of an image and a channel, evenly spaced
AIR_HU = -900.0  # voxels of CT below it are air
_QUANTILES = (0.5, 25, 50, 75, 99.5)  # per cent
_NORMAL = 1.349  # interquartile range of the standard normal distribution


@dataclass(frozen=True)
class Channel:
    """The intensities of a channel, over the sampled voxels of all images.

    Attributes:
        name: in the data set, such as ``CT``.
        low: the 0.5th percentile, of CT without air.
        median: likewise.
        high: the 99.5th percentile, likewise.
        spread: the interquartile range as a standard deviation, likewise; above 0.
        zero_share: of the voxels of an image that are exactly 0, the median over images.
    """

    name: str
    low: float
    median: float
    high: float
    spread: float
    zero_share: float

    @property
    def is_ct(self) -> bool:
        """Whether the name says that it is computed tomography, in Hounsfield units."""
        return self.name.strip().casefold() == "ct"


@dataclass(frozen=True)
class Facts:
    """What is known of a data set from its images.

    Attributes:
        name: of the data set.
        n_images: that a run may train on.
        n_sampled: of which voxels were read.
        n_classes: the background included.
        channels: their intensities.
        shapes: [n][3] voxels along left-right, back-front, foot-head of each image whose header was
            read, whatever the order of axes in the file.
        spacings_mm: [n][3] edges of a voxel, likewise.
    """

    name: str
    n_images: int
    n_sampled: int
    n_classes: int
    channels: tuple[Channel, ...]
    shapes: tuple[tuple[int, ...], ...]
    spacings_mm: tuple[tuple[float, ...], ...]


def facts_of(task: Task, case_ids: Sequence[str]) -> Facts:
    """Read what a plan needs of the images of some cases; the same files give the same facts.

    Headers of at most ``MAX_HEADERS`` images are read, and voxels of at most ``MAX_SAMPLED``,
    evenly spaced in the order of ids.

    Args:
        task: the data set.
        case_ids: cases that a run may train on, at least one; images that test steer nothing.

    Raises:
        DataError: naming the first image that cannot be read.
    """
    ids = evenly_spaced(sorted(case_ids), MAX_HEADERS)
    headers = {case_id: check_image_headers(task, task.cases[case_id]) for case_id in ids}
    axes = [by_axes(header) for header in headers.values()]
    sampled = _within_bytes(evenly_spaced(ids, MAX_SAMPLED), headers)
    return Facts(
        name=task.name,
        n_images=len(case_ids),
        n_sampled=len(sampled),
        n_classes=len(task.classes),
        channels=_channels(task, [task.cases[case_id] for case_id in sampled]),
        shapes=tuple(shape for shape, _ in axes),
        spacings_mm=tuple(spacing for _, spacing in axes),
    )


def evenly_spaced(items: Sequence[str], n_most: int) -> list[str]:
    """At most ``n_most`` items, the first and the last among them."""
    if len(items) <= n_most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, n_most).round().astype(int)]


def by_axes(header: Header) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and spacing along left-right, back-front, foot-head, as after MONAI's Orientation."""
    axes = nibabel.io_orientation(header.affine)[:, 0].astype(int)  # type: ignore[attr-defined]
    order = np.argsort(axes)
    shape = tuple(int(header.shape[i]) for i in order)
    return shape, tuple(float(header.spacing_mm[i]) for i in order)


def _within_bytes(case_ids: Sequence[str], headers: dict[str, Header]) -> list[str]:
    """The first, and of the others as many as fit into ``MAX_SAMPLED_BYTES`` with it."""
    kept, n_bytes = list(case_ids[:1]), headers[case_ids[0]].n_bytes
    for case_id in case_ids[1:]:
        n_bytes += headers[case_id].n_bytes
        if n_bytes > MAX_SAMPLED_BYTES:
            break
        kept.append(case_id)
    return kept


def _channels(task: Task, cases: Iterable[Case]) -> tuple[Channel, ...]:
    samples: list[list[np.ndarray]] = [[] for _ in task.channels]
    for case in cases:
        for found, channel in zip(samples, read_volume(case.images).numpy(), strict=True):
            voxels = channel.ravel()[:: max(1, channel.size // N_VOXELS)]
            found.append(voxels[np.isfinite(voxels)])
    return tuple(channel_of(n, found) for n, found in zip(task.channels, samples, strict=True))


def channel_of(name: str, samples: Sequence[np.ndarray]) -> Channel:
    """The intensities of a channel.

    Args:
        name: of the channel.
        samples: finite voxels [n] of each image; images may lack them.
    """
    samples = [voxels for voxels in samples if voxels.size]
    zero_share = float(np.median([(v == 0).mean() for v in samples])) if samples else 0.0
    channel = Channel(name, 0.0, 0.0, 1.0, 1.0, round(zero_share, 4))
    if not samples:
        return channel
    voxels = np.concatenate(samples).astype(np.float64)
    if channel.is_ct and (voxels > AIR_HU).any():
        voxels = voxels[voxels > AIR_HU]
    low, lower, median, upper, high = (float(q) for q in np.percentile(voxels, _QUANTILES))
    spread = (upper - lower) / _NORMAL or float(voxels.std()) or 1.0
    # a window of no width would divide by 0
    return Channel(name, low, median, high if high > low else low + 1.0, spread, channel.zero_share)
