"""From facts to numbers: one small function a rule.

Those of nnU-Net are those of the paper and its supplement (Isensee et al., "nnU-Net: a
self-configuring method for deep learning-based biomedical image segmentation", Nature Methods 18,
2021; section 6 of the supplement). Axes are those after re-orientation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alseg.planning.facts import Channel, Facts
from alseg.planning.numbers import Numbers

MASKED = 0.25  # share of voxels that are exactly 0 from which on they are taken for a mask
MIN_LEVELS = 3  # of MONAI's DynUNet
Sizes = tuple[int, ...]


def median_spacing(facts: Facts, numbers: Numbers) -> tuple[list[float], int | None]:
    """The median edges of a voxel; along a coarse axis the 10th percentile.

    An axis is coarse if its edge is ``anisotropy`` times those of both others and it has so many
    times fewer voxels. The median would interpolate half of its few slices; a smaller edge keeps
    what the better half of the images show (nnU-Net's rule).

    Returns:
        [3] edges in mm, and the coarse axis, if there is one.
    """
    spacings, shapes = np.array(facts.spacings_mm), np.array(facts.shapes)
    spacing, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    coarse = coarse_axis(spacing, numbers.anisotropy)
    if coarse is not None and shape[coarse] * numbers.anisotropy < np.delete(shape, coarse).min():
        lowest = float(np.percentile(spacings[:, coarse], 10))
        spacing[coarse] = max(lowest, float(np.delete(spacing, coarse).max()))
        return rounded(spacing), coarse
    return rounded(spacing), None


def coarse_axis(spacing_mm: Sequence[float] | np.ndarray, anisotropy: float) -> int | None:
    """The axis whose edge is ``anisotropy`` times those of both others; None if there is none."""
    axis = int(np.argmax(spacing_mm))
    others = np.delete(spacing_mm, axis)
    return axis if spacing_mm[axis] >= anisotropy * others.max() else None


def rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    """To four significant digits: headers keep edges in float32."""
    return [float(f"{value:.4g}") for value in values]


def median_shape(facts: Facts, spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """[3] the median shape of the images at another spacing, at least one voxel an axis."""
    sizes = np.array(facts.shapes) * np.array(facts.spacings_mm) / np.array(spacing_mm)
    return np.maximum(np.median(sizes, axis=0).round(), 1)


def coarser_spacing(facts: Facts, spacing_mm: Sequence[float], max_voxels: float) -> list[float]:
    """Edges so large that the median image has no more than ``max_voxels``.

    The finest axes grow first, until all are alike, and then all together.
    """
    spacing = np.array(spacing_mm, dtype=np.float64)
    floor = float(spacing.min())
    while median_shape(facts, spacing).prod() > max_voxels:
        floor *= 1.03
        spacing = np.maximum(spacing, floor)
    return rounded(spacing)


def levels(
    spacing_mm: Sequence[float], size: Sequence[int], numbers: Numbers
) -> tuple[list[Sizes], list[Sizes]]:
    """Strides and kernels of each resolution of a network (nnU-Net's rule).

    From level to level, those axes are halved that have at least ``2 min_edge`` voxels and an edge
    less than twice the finest one of them; so the edges become alike. Small images are halved
    further until there are ``MIN_LEVELS``. A kernel is 1 along an axis
    whose edge is still twice the finest one or more, and 3 along the others and in the last level;
    along an axis of one voxel there is nothing to convolve.

    Args:
        spacing_mm: [3] edges of a voxel.
        size: [3] of the patch, in voxels.
        numbers: of the rules.

    Returns:
        For each level, the stride [3] at its entry, and the kernel [3].
    """
    edges, sizes = np.array(spacing_mm, np.float64), np.array(size, np.float64)
    strides: list[Sizes] = [(1, 1, 1)]
    kernels: list[Sizes] = []
    wide = np.zeros(3, dtype=bool)
    while len(strides) < numbers.max_levels:
        needed = len(strides) < MIN_LEVELS
        halved = sizes >= 2 * numbers.min_edge
        if needed and not halved.any():
            halved = sizes >= 4
        halved &= edges < 2 * edges[halved].min(initial=math.inf)
        alone = halved.sum() == 1 and not needed
        if not halved.any() or (alone and sizes[halved][0] < 3 * numbers.min_edge):
            break
        wide |= edges < 2 * edges.min()
        kernels.append(_kernel(wide, size))
        strides.append(tuple(int(n) for n in np.where(halved, 2, 1)))
        edges, sizes = (
            np.where(halved, 2 * edges, edges),
            np.where(halved, np.ceil(sizes / 2), sizes),
        )
    return strides, [*kernels, _kernel(np.ones(3, dtype=bool), size)]


def _kernel(wide: np.ndarray, size: Sequence[int]) -> Sizes:
    return tuple(3 if w and n > 1 else 1 for w, n in zip(wide, size, strict=True))


def divisors(strides: Sequence[Sequence[int] | int]) -> Sizes:
    """[3] by what a network of these strides can divide its input."""
    each = [[s] * 3 if isinstance(s, int) else list(s) for s in strides]
    return tuple(math.prod(axis) for axis in zip(*each, strict=True)) if each else (1, 1, 1)


def padded(size: Sequence[float] | np.ndarray, divisor: Sequence[int]) -> list[int]:
    """The sizes, rounded up to multiples of the divisors."""
    return [int(-(-round(float(n)) // d) * d) for n, d in zip(size, divisor, strict=True)]


def patch_size(
    spacing_mm: Sequence[float],
    shape: np.ndarray,
    numbers: Numbers,
    fits: Callable[[Sequence[int]], bool],
    divisor: Sizes | None = None,
) -> list[int]:
    """The largest patch that fits (nnU-Net's rule).

    It starts as the part of the median image that lies in a cube in mm much larger than what fits.
    As long as it does not fit, the axis is cut that is the longest against the image. Each axis can
    be halved as often as ``levels`` halves it.

    Args:
        spacing_mm: [3] edges of a voxel.
        shape: [3] of the median image, in voxels.
        numbers: of the rules.
        fits: whether a training step of such patches does.
        divisor: [3] of a network that is there already; None for the network of the plan.
    """

    def divisor_of(size: Sequence[int]) -> Sizes:
        return divisor or divisors(levels(spacing_mm, size, numbers)[0])

    lowest = np.minimum(shape, 2 * numbers.min_edge).astype(int)
    if lowest.max() < 2 * numbers.min_edge:
        lowest = np.full(3, 2 * numbers.min_edge)
    edges = 1 / np.array(spacing_mm)
    cube = edges * (8 * numbers.step_voxels / edges.prod()) ** (1 / 3)
    size = [int(n) for n in np.maximum(np.minimum(cube, shape), lowest).round()]
    patch = padded(size, divisor_of(size))
    while not fits(patch):
        cuttable = [a for a in range(3) if patch[a] > max(lowest[a], divisor_of(patch)[a])]
        if not cuttable:
            break
        axis = max(cuttable, key=lambda a: patch[a] / shape[a])
        size = list(patch)
        size[axis] = max(int(lowest[axis]), size[axis] - divisor_of(patch)[axis])
        smaller = padded(size, divisor_of(size))
        patch = smaller if math.prod(smaller) < math.prod(patch) else _cut(patch, size, axis)
    return padded(patch, divisor_of(patch))


def _cut(patch: Sequence[int], size: Sequence[int], axis: int) -> list[int]:
    return [size[a] if a == axis else n for a, n in enumerate(patch)]


def filters(n_levels: int, numbers: Numbers) -> list[int]:
    """Twice as many from level to level, up to a limit."""
    return [min(numbers.filters * 2**level, numbers.max_filters) for level in range(n_levels)]


# Tensors of a level's size and filters that a step keeps: of two convolutions, their norms and
# activations in the encoder and the decoder, of what the decoder takes up, and gradients of some.
_KEPT = 16


def training_bytes(
    patch: Sequence[int],
    batch_size: int,
    strides: Sequence[Sequence[int]],
    n_filters: Sequence[int],
    n_classes: int,
) -> int:
    """About the memory that a training step takes for activations and their gradients, in float32.

    One to two times what autograd keeps for a step of DynUNet.
    """
    voxels, total = float(math.prod(patch) * batch_size), 0.0
    for stride, n in zip(strides, n_filters, strict=True):
        voxels /= math.prod(stride)
        total += _KEPT * n * voxels
    return int(4 * (total + 6 * n_classes * math.prod(patch) * batch_size))


def batch_size(
    patch: Sequence[int], n_voxels: float, numbers: Numbers, fits: Callable[[int], bool]
) -> int:
    """As many patches as a step may see voxels; a step sees a small share of the data set.

    Args:
        patch: [3] in voxels.
        n_voxels: of all images.
        numbers: of the rules.
        fits: whether so many patches do.
    """
    of_set = int(numbers.seen_share * n_voxels / math.prod(patch))
    wanted = min(numbers.step_voxels // math.prod(patch), numbers.max_batch, of_set)
    smallest = min(numbers.min_batch, numbers.max_batch)
    fitting = (n for n in range(max(wanted, smallest), smallest, -1) if fits(n))
    return next(fitting, smallest)


def scoring_window(
    patch: Sequence[int],
    facts: Facts,
    spacing_mm: Sequence[float],
    divisor: Sequence[int],
    max_voxels: int,
) -> list[int]:
    """One window for nine volumes of ten, if it has no more than ``max_voxels``; else the patch.

    A window a volume is three times faster than several that overlap.
    """
    sizes = np.array(facts.shapes) * np.array(facts.spacings_mm) / np.array(spacing_mm)
    window = padded(np.maximum(np.percentile(sizes, 90, axis=0), patch), divisor)
    return window if math.prod(window) <= max_voxels else list(patch)


def in_plane(value: float, coarse: int | None, *, rotation: bool) -> list[float]:
    """[3] a number for each axis, which augments along it; 0 where that would mix thick slices.

    Rotation is about an axis: with a coarse axis, only about that one, within the slices.
    """
    if coarse is None:
        return [value] * 3
    return [value if (axis == coarse) == rotation else 0.0 for axis in range(3)]


def crop_ratios(n_classes: int) -> list[int]:
    """Of patches around each class: equally many, background included.

    nnU-Net centres a third of a batch on foreground; short trainings gain from more (docs/auto.md).
    """
    return [1] * n_classes


def intensities(channels: Sequence[Channel]) -> tuple[list[dict[str, Any]], str]:
    """The transforms that bring intensities to about a standard normal distribution, and why.

    CT has one scale for all scans: percentiles of all images clip it, and a robust z-score of all
    follows. Elsewhere each image has a scale of its own: each is clipped at its percentiles and
    gets its own z-score; where much of it is exactly 0, only of the other voxels.
    """
    if all(channel.is_ct for channel in channels):
        low, high = min(c.low for c in channels), max(c.high for c in channels)
        median = float(np.mean([c.median for c in channels]))
        spread = float(np.mean([c.spread for c in channels]))
        scaled = {
            "_target_": "monai.transforms.ScaleIntensityRange",
            "a_min": rounded([low])[0],
            "a_max": rounded([high])[0],
            "b_min": rounded([(low - median) / spread])[0],
            "b_max": rounded([(high - median) / spread])[0],
            "clip": True,
        }
        return [scaled], (
            "CT by its name: clipped at the 0.5th and 99.5th percentile of all voxels except air, "
            f"then less their median {median:.4g} HU and by their robust deviation {spread:.4g} HU"
        )
    masked = min(channel.zero_share for channel in channels) >= MASKED
    clipped = {
        "_target_": "monai.transforms.ClipIntensityPercentiles",
        "lower": 0.5,
        "upper": 99.5,
        "channel_wise": True,
    }
    normalized = {
        "_target_": "monai.transforms.NormalizeIntensity",
        "nonzero": masked,
        "channel_wise": True,
    }
    names = ", ".join(dict.fromkeys(channel.name for channel in channels))
    share = min(channel.zero_share for channel in channels)
    return [clipped, normalized], (
        f"{names} is no CT, so each image has a scale of its own: clipped at its 0.5th and 99.5th "
        f"percentile, z-score of its {'voxels other than 0' if masked else 'voxels'} "
        f"({share:.0%} of them are 0)"
    )
