"""Feature vectors of volumes: activations of the network's bottleneck, pooled.

They are taken by hooks in the passes that score, so they cost no pass of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)
from torch import Tensor, nn


class BottleneckFeatures:
    """Pools the deepest activations of all windows and passes of one volume.

    The bottleneck is the leaf module with the smallest spatial output (of more than one voxel, as
    squeeze-and-excitation blocks pool to one); of several the one with the most channels, as the
    decoder begins by reducing them; of several still the last. That rule needs no name and holds
    for every encoder-decoder; for MONAI's UNet it is the activation of the bottom layer.

    For a window with activations a [K, d, h, w], the vector is sum_v w_v a_v over sum_v w_v, all
    windows and passes together, where w is 1, or on request the predicted foreground probability
    averaged onto the bottleneck's grid.

    Attributes:
        inside: weights of the windows that come next, [B, 1, D, H, W], such as a region's mask;
            None for all of them alike.

    Args:
        foreground: weight with the predicted foreground.
    """

    inside: Tensor | None = None

    def __init__(self, *, foreground: bool) -> None:
        self.foreground = foreground
        self._deepest: Tensor | None = None  # of the forward pass that is under way
        self._depth: tuple[int, int] | None = None
        self._sum: Tensor | None = None  # [K]
        self._weight = 0.0

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """Collect from all forward passes of the network within the context."""
        leaves = [module for module in network.modules() if not list(module.children())]
        handles = [network.register_forward_pre_hook(self._start)]
        handles += [leaf.register_forward_hook(self._see) for leaf in leaves]
        handles += [network.register_forward_hook(self._finish)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def vector(self) -> Tensor:
        """The feature vector, shape [K].

        Raises:
            RuntimeError: if no activation has been seen.
        """
        if self._sum is None:
            raise RuntimeError("no pass of the network has been watched")
        return self._sum / self._weight

    def add(self, activation: Tensor, logits: Tensor) -> None:
        """Take in a batch of windows.

        Args:
            activation: of the bottleneck, [B, K, d, h, w].
            logits: the network's output, [B, C, D, H, W].
        """
        weight = torch.ones_like(activation[:, :1], dtype=torch.float32)  # [B, 1, d, h, w]
        if self.foreground:
            probability = 1 - torch.softmax(logits.float(), dim=1)[:, :1]
            weight = F.adaptive_avg_pool3d(probability, list(activation.shape[2:]))  # type: ignore[arg-type]
        if self.inside is not None:
            weight = weight * F.adaptive_avg_pool3d(self.inside.float(), list(activation.shape[2:]))  # type: ignore[arg-type]
        # float64, and a floor: a volume without a trace of foreground has features too
        weight = weight.double().clamp(min=1e-12)
        total = (weight * activation).sum(dim=(0, 2, 3, 4))  # [K]
        self._sum = total if self._sum is None else self._sum + total
        self._weight += float(weight.sum())

    def _start(self, network: nn.Module, inputs: Any) -> None:
        self._deepest, self._depth = None, None

    def _see(self, leaf: nn.Module, inputs: Any, output: Any) -> None:
        found = depth(output)
        if found is not None and (self._depth is None or found >= self._depth):
            # a copy: SegResNet adds to it in place afterwards
            self._deepest, self._depth = output.clone(), found

    def _finish(self, network: nn.Module, inputs: Any, output: Tensor) -> None:
        if self._deepest is None:
            raise RuntimeError("the network has no layer with a spatial output to take features of")
        self.add(self._deepest, output)
        self._deepest = None


def depth(activation: Any) -> tuple[int, int] | None:
    """Grows with fewer voxels, then with more channels, of [B, K, d, h, w].

    None for what is not a volume of more than one voxel.
    """
    if not isinstance(activation, Tensor) or activation.ndim != 5:
        return None
    n_voxels = activation.shape[2:].numel()
    return (-n_voxels, activation.shape[1]) if n_voxels > 1 else None
