"""Monte-Carlo dropout passes over those windows of a volume that its score depends on.

The score of ten whole passes varies by a few thousandths from seed to seed where a volume has many
windows: they average each other out. One pass over part of them, compared with a deterministic
pass, says as much as a query needs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from alseg.networks.dropout import MaskedDropout, MaskSeed
from alseg.networks.shared_prefix import TwoParts, two_parts
from alseg.scoring.gate import chances, drawn, expectation, sensitivity
from alseg.scoring.passes import Heads, Passes, Stitch, batches
from alseg.scoring.windows import Box, Windows, origin_of, overlap_of, shifted, sliding_windows
from alseg.strategies.statistics import KEPT, SampledStatistics, VoxelStatistics


@torch.no_grad()
def sampled_passes(
    network: nn.Module,
    image: Tensor,
    inferer: Inferer,
    n_passes: int,
    mask_seed: MaskSeed,
    gate: float,
    kept: Collection[str] = KEPT,
) -> Passes:
    """T passes over a sample of a volume's windows, drawn anew for each, and their statistics.

    A deterministic pass comes first. In a stochastic one each window that is drawn is a pass of its
    own: the others have their deterministic logits, so a voxel's logits are l + a (l_t - l_0), with
    a the window's share of its blending weight, and the window's deviations count 1 / probability
    times (Horvitz and Thompson, 1952). So the variance summed over windows has the mean that it has
    when all windows are run (gate 0). That sum is the variance of whole passes to first order in
    the deviations, as windows have independent masks; on phantoms they differ by 0.2%.

    Args:
        network: in eval mode; weights and buffers are left bit-identical.
        image: one preprocessed volume, shape [1, channels, D, H, W].
        inferer: a plain ``SlidingWindowInferer``.
        n_passes: T, at least 1.
        mask_seed: gives the seed of each dropout mask, and of each draw.
        gate: see ``gate.chances``.
        kept: of variance and expected_entropy, what the statistics keep.
    """
    windows = sliding_windows(image, inferer)
    assert windows is not None  # ``sources.fitted`` has seen to it
    parts = two_parts(network, windows.cut([0, len(windows.boxes) - 1]))
    still = _Still.of(windows, parts)
    statistics = SampledStatistics(torch.softmax(still.logits, dim=0), kept)
    inside = torch.zeros_like(windows.weight)
    inside[windows.inside] = sensitivity(statistics.mean, of_information="expected_entropy" in kept)
    expected, shares = expectation(windows, inside)
    probability = chances(shares, gate)
    still.heads.keep_only(np.flatnonzero(probability > 0.5).tolist())
    masks = MaskedDropout(mask_seed)
    # a forward pass of few windows is mostly the calls of its layers
    together = max(1, int(windows.batch_size / 2 / probability.sum()))
    n_run = [len(windows.boxes)]  # with those of the deterministic pass

    def window_logits(samples: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
        for batch in batches(samples, windows.batch_size):
            masks.samples = batch
            activations = still.heads([index for _, index in batch])
            with masks.attached_to(network, in_place=parts.exclusive):
                logits = parts.tail(activations, None)
            del activations
            yield from logits.contiguous()

    @torch.no_grad()
    def after_each() -> Iterator[VoxelStatistics]:
        for first in range(0, n_passes, together):
            sample = {
                number: _drawn(probability, mask_seed, number)
                for number in range(n_passes)[first : first + together]
            }
            made = window_logits([(number, i) for number in sample for i in sample[number]])
            for indices in sample.values():
                for index, logits in zip(indices, made, strict=False):  # ``made`` goes on
                    box, changed = still.with_window(index, logits)
                    statistics.add(box, changed, 1 / probability[index])
                n_run.append(len(indices))
                statistics.end_pass()
                yield statistics

    return Passes(
        after_each(),
        lambda n: sum(n_run[: n + 1]) / len(windows.boxes),
        expected,
        together,
    )


def _drawn(probability: np.ndarray, mask_seed: MaskSeed, number: int) -> Sequence[int]:
    """The windows of a pass."""
    seed = mask_seed(number, len(probability), 0)  # of a window that there is not
    return drawn(probability, np.random.default_rng(seed).random())


@dataclass(frozen=True)
class _Still:
    """A volume's deterministic pass.

    Attributes:
        windows: of the volume.
        heads: their activations before the first dropout.
        plain: their logits, [C, d, h, w] each.
        logits: all of them together, [C, D, H, W].
    """

    windows: Windows
    heads: Heads
    plain: list[Tensor]
    logits: Tensor

    @classmethod
    def of(cls, windows: Windows, parts: TwoParts) -> _Still:
        """Run it."""
        heads, stitch = Heads(parts, windows), Stitch(windows)
        plain: list[Tensor] = []
        for batch in batches(range(len(windows.boxes)), windows.batch_size):
            found = parts.tail(heads(batch), None).contiguous()
            for index, logits in zip(batch, found, strict=True):
                stitch.add(index, logits)
                plain.append(logits.to(windows.weight.device))
        return cls(windows, heads, plain, stitch.logits())

    def with_window(self, index: int, logits: Tensor) -> tuple[Box, Tensor]:
        """The softmax that a window's logits [C, d, h, w] lead to, and where in the volume."""
        windows = self.windows
        part = overlap_of(windows.boxes[index], windows.inside)
        own = (slice(None), *shifted(part, origin_of(windows.boxes[index])))
        box = shifted(part, origin_of(windows.inside))
        share = windows.importance[own[1:]] / windows.weight[part]
        change = logits[own].to(share.device, torch.float32) - self.plain[index][own]
        together = change.mul_(share).add_(self.logits[(slice(None), *box)])
        return box, torch.softmax(together, dim=0)
