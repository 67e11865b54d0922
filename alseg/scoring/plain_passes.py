"""Monte-Carlo dropout the plain way, which faster ones are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from alseg.networks.dropout import MaskedDropout, MaskSeed
from alseg.networks.low_precision import checked_forward
from alseg.strategies.statistics import VoxelStatistics


@torch.no_grad()
def stochastic_passes(
    network: nn.Module, image: Tensor, inferer: Inferer, n_passes: int, mask_seed: MaskSeed
) -> Iterator[VoxelStatistics]:
    """Run T stochastic sliding-window passes over one volume and stream their statistics.

    The plain way, for any network and any inferer: ``alseg.scoring.passes`` has a faster one, of
    which this is the reference. Within a pass, logits are averaged over overlapping windows, then
    softmax is taken, then the statistics are updated, as in the MONAI tutorial.

    Args:
        network: in eval mode; weights and buffers are left bit-identical.
        image: one preprocessed volume, shape [1, channels, D, H, W].
        inferer: runs a callable over windows.
        n_passes: T, at least 1.
        mask_seed: gives the seed of each dropout mask.

    Yields:
        The statistics so far, after each pass; the same object each time.
    """
    statistics = VoxelStatistics()
    masks = MaskedDropout(mask_seed)
    for pass_index in range(n_passes):
        windows_seen = 0

        def predict(windows: Tensor, pass_index: int = pass_index) -> Tensor:
            nonlocal windows_seen
            masks.samples = [(pass_index, windows_seen + i) for i in range(len(windows))]
            windows_seen += len(windows)
            return checked_forward(network, windows)

        with masks.attached_to(network):
            logits = inferer(image, predict)
        statistics.update(torch.softmax(logits[0].float(), dim=0))  # [C, D, H, W]
        yield statistics


def stochastic_statistics(
    network: nn.Module, image: Tensor, inferer: Inferer, n_passes: int, mask_seed: MaskSeed
) -> VoxelStatistics:
    """The statistics after all of ``stochastic_passes``, which takes the same arguments."""
    *_, statistics = stochastic_passes(network, image, inferer, n_passes, mask_seed)
    return statistics
