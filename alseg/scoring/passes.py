"""Monte-Carlo dropout passes over a volume at as little cost as possible.

Same masks, same numbers as ``plain_passes.stochastic_passes``, which runs the whole network over
all windows T times. Here the part of the network before its first dropout runs once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from alseg.networks.dropout import MaskedDropout, MaskSeed
from alseg.networks.features import BottleneckFeatures
from alseg.networks.shared_prefix import TwoParts, two_parts
from alseg.scoring.plain_passes import stochastic_passes
from alseg.scoring.windows import Windows, sliding_windows
from alseg.strategies.statistics import KEPT, VoxelStatistics

# Activations of one volume that are kept between passes: 2 GiB. BasicUNet computes 16 channels at
# full resolution before its first dropout; 15 million voxels fill this, windows' overlap included.
KEPT_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Passes:
    """Stochastic passes over one volume, made when they are asked for.

    Attributes:
        after_each: the statistics so far, after each pass; the same object each time. A consumer
            that has seen enough may stop.
        cost: of a number of passes that have been made, in plain passes: windows that went through
            the network over the windows of the volume.
        expected: map [D, H, W] of what a deterministic pass expects of the measure, up to a factor
            that a pool's volumes share; None where there was no such pass.
        together: how many passes are made at a time; to stop between them saves nothing.
    """

    after_each: Iterator[VoxelStatistics]
    cost: Callable[[int], float] = float
    expected: Tensor | None = None
    together: int = 1

    def __iter__(self) -> Iterator[VoxelStatistics]:
        return self.after_each


@torch.no_grad()
def dropout_passes(
    network: nn.Module,
    image: Tensor,
    inferer: Inferer,
    n_passes: int,
    mask_seed: MaskSeed,
    *,
    features: BottleneckFeatures | None = None,
    kept: Collection[str] = KEPT,
    ahead: bool = True,
) -> Passes:
    """T stochastic sliding-window passes over one volume, and their statistics.

    Memory does not depend on T: the passes follow each other, and what is kept between them is the
    statistics and the activations before the first dropout.

    Args:
        network: in eval mode; weights and buffers are left bit-identical.
        image: one preprocessed volume, shape [1, channels, D, H, W].
        inferer: says how windows are cut, blended and batched; one that is not a plain
            ``SlidingWindowInferer`` runs the passes itself, without savings.
        n_passes: T, at least 1.
        mask_seed: gives the seed of each dropout mask.
        features: shown each window of each pass.
        kept: what the statistics keep, see ``VoxelStatistics``.
        ahead: batches may hold windows of the next passes; False for a consumer that may stop.
    """
    windows = sliding_windows(image, inferer)
    if windows is None:
        return Passes(_plainly(network, image, inferer, n_passes, mask_seed, features))
    parts = two_parts(network, windows.cut([0, len(windows.boxes) - 1]))
    heads, stitch, statistics = Heads(parts, windows), Stitch(windows), VoxelStatistics(kept)
    n_windows = len(windows.boxes)
    masks = MaskedDropout(mask_seed)

    @torch.no_grad()
    def after_each() -> Iterator[VoxelStatistics]:
        at_once = max(1, windows.batch_size // n_windows) if ahead else 1
        for samples in _batches_of_passes(n_passes, at_once, n_windows, windows.batch_size):
            masks.samples = samples
            activations = heads([window for _, window in samples])
            with masks.attached_to(network, in_place=parts.exclusive):
                logits = parts.tail(activations, features)  # [B, C, d, h, w]
            del activations  # between two passes it would be kept for nothing
            for (_, window), window_logits in zip(samples, logits, strict=True):
                stitch.add(window, window_logits)
                if window == n_windows - 1:
                    statistics.update(stitch.take())
                    yield statistics

    return Passes(after_each())


@torch.no_grad()
def _plainly(
    network: nn.Module,
    image: Tensor,
    inferer: Inferer,
    n_passes: int,
    mask_seed: MaskSeed,
    features: BottleneckFeatures | None,
) -> Iterator[VoxelStatistics]:
    with features.watching(network) if features else nullcontext():
        yield from stochastic_passes(network, image, inferer, n_passes, mask_seed)


class Stitch:
    """Puts the windows of a volume together to its softmax.

    Its two tensors are filled again for each pass: fresh ones of a volume's size cost page faults.
    """

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self._total: Tensor | None = None
        self._softmax: Tensor | None = None
        self._is_fresh = True

    def add(self, index: int, logits: Tensor) -> None:
        """Add a window's logits, [C, d, h, w]."""
        if self._total is None:
            self._total = self.windows.weight.new_zeros(len(logits), *self.windows.weight.shape)
        elif self._is_fresh:
            self._total.zero_()
        self._is_fresh = False
        self.windows.add(self._total, index, logits.contiguous())

    def logits(self) -> Tensor:
        """Logits of the volume, [C, D, H, W], until the next ``add``, which starts again."""
        if self._total is None or self._is_fresh:
            raise RuntimeError("no window has been added")
        self._is_fresh = True
        inside = self.windows.inside
        return self._total[(slice(None), *inside)].div_(self.windows.weight[inside])

    def take(self) -> Tensor:
        """Softmax of the volume, [C, D, H, W], until the next ``take``."""
        logits = self.logits()
        if self._softmax is None:
            self._softmax = torch.empty_like(logits)
        return torch.softmax(logits, dim=0, out=self._softmax)


class Heads:
    """Activations before the first dropout, computed once a window as far as memory allows."""

    def __init__(self, parts: TwoParts, windows: Windows) -> None:
        self.parts = parts
        self.windows = windows
        self._known: dict[int, tuple[Tensor, ...]] = {}
        self._batches: dict[tuple[int, ...], tuple[Tensor, ...]] = {}  # pass after pass the same
        self._bytes_each = 0

    def __call__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """The activations of a batch of windows, which may hold one several times."""
        key = tuple(indices)
        if key in self._batches:
            return self._batches[key]
        device = self.windows.image.device
        missing = [i for i in dict.fromkeys(indices) if i not in self._known]
        fresh: dict[int, tuple[Tensor, ...]] = {}
        if missing:
            batch = self.parts.head(self.windows.cut(missing))
            fresh = {index: tuple(a[[row]] for a in batch) for row, index in enumerate(missing)}
        found = [fresh[i] if i in fresh else self._known[i] for i in indices]
        for index, activations in fresh.items():
            self._bytes_each = sum(a.nbytes for a in activations)
            if (len(self._known) + 1) * self._bytes_each <= KEPT_BYTES:
                self._known[index] = tuple(a.to(self.windows.weight.device) for a in activations)
        batch = tuple(torch.cat(same).to(device) for same in zip(*found, strict=True))
        if self.parts.leaves_input and device == self.windows.weight.device:
            self._remember(key, batch)
        return batch

    def _remember(self, key: tuple[int, ...], batch: tuple[Tensor, ...]) -> None:
        """Keep a batch of windows that are kept, in place of the windows."""
        if all(index in self._known for index in key):
            self._batches[key] = batch
            for row, index in enumerate(key):
                self._known[index] = tuple(a[row : row + 1] for a in batch)

    def keep_only(self, indices: Sequence[int]) -> None:
        """Forget the other windows."""
        self._batches.clear()
        self._known = {
            i: tuple(a.clone() for a in self._known[i]) for i in indices if i in self._known
        }


def _batches_of_passes(
    n_passes: int, at_once: int, n_windows: int, size: int
) -> Iterator[Sequence[tuple[int, int]]]:
    """(pass, window) in batches that end where a pass ends."""
    for first in range(0, n_passes, at_once):
        numbers = range(n_passes)[first : first + at_once]
        yield from batches(list(product(numbers, range(n_windows))), size)


_T = TypeVar("_T")


def batches(items: Sequence[_T], most: int) -> Iterator[Sequence[_T]]:
    """Some at a time, evenly: 18 in batches of at most 8 are 6, 6 and 6, not 8, 8 and 2."""
    size = math.ceil(len(items) / math.ceil(len(items) / most))
    for first in range(0, len(items), size):
        yield items[first : first + size]
