"""Monte-Carlo dropout passes over a volume at as little cost as possible.

Same masks, same numbers as ``mc_dropout.stochastic_passes``, which runs the whole network over all
windows T times. Here the part of the network before its first dropout runs once, and with a gate
the windows that cannot contribute to the score run once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice, product
from typing import TypeVar

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from alseg.networks.dropout import MaskedDropout, MaskSeed
from alseg.networks.features import BottleneckFeatures
from alseg.networks.shared_prefix import TwoParts, two_parts
from alseg.scoring.gate import windows_to_keep
from alseg.scoring.plain_passes import stochastic_passes
from alseg.scoring.windows import Box, Windows, origin_of, overlap_of, shifted, sliding_windows
from alseg.strategies.statistics import KEPT, BoxStatistics, VoxelStatistics, entropy_of

# Activations of one volume that are kept between passes: 2 GiB. BasicUNet computes 16 channels at
# full resolution before its first dropout; 15 million voxels fill this, windows' overlap included.
KEPT_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Passes:
    """Stochastic passes over one volume, made when they are asked for.

    Attributes:
        after_each: the statistics so far, after each pass; the same object each time. A consumer
            that has seen enough may stop, or leave and come back.
        deterministic: softmax of the deterministic pass that a gate begins with, [C, D, H, W]; None
            without a gate.
        n_bytes: about what is kept between two passes; None without a gate, when it is not known
            before the first one.
        share: of the volume's windows, what a pass runs.
    """

    after_each: Iterator[VoxelStatistics]
    deterministic: Tensor | None = None
    n_bytes: int | None = None
    share: float = 1.0

    def __iter__(self) -> Iterator[VoxelStatistics]:
        return self.after_each

    def cost(self, n_passes: int) -> float:
        """What so many of them take, in plain passes: windows over windows of the volume."""
        return (self.deterministic is not None) + n_passes * self.share


@torch.no_grad()
def dropout_passes(
    network: nn.Module,
    image: Tensor,
    inferer: Inferer,
    n_passes: int,
    mask_seed: MaskSeed,
    *,
    gate: float | None = None,
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
        gate: see ``windows_to_keep``; None runs all windows in each pass.
        features: shown each window of each pass; not together with a gate.
        kept: what the statistics keep, see ``VoxelStatistics``.
        ahead: batches may hold windows of the next passes; False for a consumer that may stop.
    """
    windows = sliding_windows(image, inferer)
    if windows is None:
        return Passes(_plainly(network, image, inferer, n_passes, mask_seed, features))
    parts = two_parts(network, windows.cut([0, len(windows.boxes) - 1]))
    heads = _Heads(parts, windows)
    if gate is None:
        everything = range(len(windows.boxes))
        stitch = _Stitch(windows, windows.bounding_box(everything))
        gated = _Gated(everything, stitch, VoxelStatistics(kept))
    else:
        gated = _behind_gate(parts, heads, windows, gate, kept)
    masks = MaskedDropout(mask_seed)

    @torch.no_grad()
    def after_each() -> Iterator[VoxelStatistics]:
        at_once = max(1, windows.batch_size // len(gated.kept)) if ahead else 1
        for samples in _batches_of_passes(n_passes, at_once, gated.kept, windows.batch_size):
            masks.samples = samples
            activations = heads([window for _, window in samples])
            with masks.attached_to(network, in_place=parts.exclusive):
                logits = parts.tail(activations, features)  # [B, C, d, h, w]
            del activations  # between two passes it would be kept for nothing
            for (_, window), window_logits in zip(samples, logits, strict=True):
                gated.stitch.add(window, window_logits)
                if window == gated.kept[-1]:
                    gated.statistics.update(gated.stitch.take())
                    yield gated.statistics

    n_bytes = None
    if gate is not None:
        n_bytes = windows.n_bytes + heads.n_bytes_of(len(gated.kept)) + gated.n_bytes
    share = len(gated.kept) / len(windows.boxes)
    return Passes(after_each(), gated.deterministic, n_bytes, share)


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


@dataclass(frozen=True)
class _Gated:
    """What a gate leaves to the stochastic passes.

    Attributes:
        kept: the windows to run.
        stitch: puts their logits together with those of the other windows.
        statistics: of the bounding box of what is kept.
        deterministic: softmax of the deterministic pass, [C, D, H, W].
    """

    kept: Sequence[int]
    stitch: _Stitch
    statistics: VoxelStatistics
    deterministic: Tensor | None = None

    @property
    def n_bytes(self) -> int:
        """Of the volume's softmax, and the region's logits and statistics."""
        if self.deterministic is None:
            return 0
        region = math.prod(side.stop - side.start for side in self.stitch.region)
        n_classes = len(self.deterministic)
        # logits, mean and squared deviations in 32 bits and votes in 16 a class; entropy
        return self.deterministic.nbytes + region * (n_classes * 14 + 4)


def _behind_gate(
    parts: TwoParts, heads: _Heads, windows: Windows, gate: float, statistics: Collection[str]
) -> _Gated:
    """Run a deterministic pass, to see which windows the stochastic ones need."""
    everything = range(len(windows.boxes))
    stitch = _Stitch(windows, windows.bounding_box(everything))
    plain: list[Tensor] = []
    for batch in _batches(everything, windows.batch_size):
        for index, logits in zip(batch, parts.tail(heads(batch), None), strict=True):
            stitch.add(index, logits)
            plain.append(logits.to(windows.weight.device))
    probabilities = stitch.take()  # [C, D, H, W]
    entropy = torch.zeros_like(windows.weight)
    entropy[windows.inside] = entropy_of(probabilities)
    kept = windows_to_keep(windows, entropy, gate)
    heads.keep_only(kept)
    for index in set(everything) - set(kept):
        stitch.add(index, plain[index])
    region = windows.bounding_box(kept)
    box = shifted(overlap_of(region, windows.inside), origin_of(windows.inside))
    boxed = BoxStatistics(probabilities, box, statistics)
    return _Gated(kept, stitch.within(region), boxed, probabilities)


class _Stitch:
    """Puts windows together to the softmax of a region of the padded volume.

    Its two tensors are filled again for each pass: fresh ones of a volume's size cost page faults.

    Args:
        windows: of the volume.
        region: holds all windows that are added.
        base: weighted logits that are there before the first window, [C, ...] of the region.
    """

    def __init__(self, windows: Windows, region: Box, base: Tensor | None = None) -> None:
        self.windows = windows
        self.region = region
        self.base = base
        self._total: Tensor | None = None
        self._softmax: Tensor | None = None
        self._is_fresh = True

    def add(self, index: int, logits: Tensor) -> None:
        """Add a window's logits, [C, d, h, w]."""
        total = self._started(len(logits)) if self._is_fresh else self._total
        assert total is not None
        self.windows.add(total, index, logits.contiguous(), origin_of(self.region))

    def take(self) -> Tensor:
        """Softmax of the region within the volume, [C, ...], until the next ``take``.

        The next window starts again.
        """
        if self._total is None or self._is_fresh:
            raise RuntimeError("no window has been added")
        inside = overlap_of(self.region, self.windows.inside)
        total = self._total[(slice(None), *shifted(inside, origin_of(self.region)))]
        self._is_fresh = True
        total.div_(self.windows.weight[inside])
        if self._softmax is None:
            self._softmax = torch.empty_like(total)
        return torch.softmax(total, dim=0, out=self._softmax)

    def within(self, region: Box) -> _Stitch:
        """One for a part of this region, that starts from what has been added here."""
        base = None
        if self._total is not None and not self._is_fresh:
            base = self._total[(slice(None), *shifted(region, origin_of(self.region)))].clone()
        return _Stitch(self.windows, region, base)

    def _started(self, n_classes: int) -> Tensor:
        self._is_fresh = False
        if self._total is None:
            size = [side.stop - side.start for side in self.region]
            self._total = self.windows.weight.new_empty(n_classes, *size)
        if self.base is None:
            return self._total.zero_()
        return self._total.copy_(self.base)


class _Heads:
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

    def n_bytes_of(self, n_windows: int) -> int:
        """What so many windows take, as far as they are kept."""
        return min(n_windows * self._bytes_each, KEPT_BYTES)


def _batches_of_passes(
    n_passes: int, at_once: int, windows: Sequence[int], size: int
) -> Iterator[list[tuple[int, int]]]:
    """(pass, window) in batches of one size that end where a pass ends."""
    n_together = at_once * len(windows)
    size = math.ceil(n_together / math.ceil(n_together / size))  # 6, 6, 6 and not 8, 8, 2
    for first in range(0, n_passes, at_once):
        yield from _batches(product(range(n_passes)[first : first + at_once], windows), size)


_T = TypeVar("_T")


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
