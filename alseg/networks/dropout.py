"""Dropout layers, and masks for them that depend only on a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from alseg.core.errors import ConfigError

# (pass, window, layer) -> seed of one dropout mask
MaskSeed = Callable[[int, int, int], int]

UNITS_AT_ONCE = 2**18  # of several masks that are drawn together; more would leave the cache


def active_dropout_layers(network: nn.Module) -> list[_DropoutNd]:
    """The dropout layers with a positive rate, in the order in which the network holds them."""
    return [m for m in network.modules() if isinstance(m, _DropoutNd) and m.p > 0]


def drop_no_logits(network: nn.Module) -> None:
    """Switch off (p = 0) the dropout that MONAI's DynUNet puts on its logits.

    A class's logit of 0 is no answer of a network; training with it learns slowly.
    """
    if isinstance(network, DynUNet):
        for layer in active_dropout_layers(network.output_block):
            layer.p = 0.0


def check_dropout(network: nn.Module) -> None:
    """Check that a network can make stochastic passes.

    Raises:
        ConfigError: if it has no active dropout, or a kind whose masks alseg does not draw.
    """
    layers = active_dropout_layers(network)
    if not layers:
        raise ConfigError(
            "the strategy scores with Monte-Carlo dropout, but the network has no active dropout: "
            "set model.dropout above 0 (at most 1), or take another source, such as "
            "uncertainty=ensemble, or a strategy that needs no passes, such as strategy=random"
        )
    for layer in layers:
        if not isinstance(layer, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
            raise ConfigError(f"Monte-Carlo dropout does not support {type(layer).__name__}")


class MaskedDropout:
    """Draws the dropout masks of a network that is otherwise in eval mode.

    No layer is switched to train mode, so no buffer can change, batch norm's included. A mask is a
    function of only (pass, window, layer): batching the windows in another way, scoring the pool
    in another order or on several processes gives the same masks.

    Rejected: ``layer.train()`` under one seed a case. The global generator then hands out masks in
    the order of the forward calls, and the scores depend on the window batch size.
    """

    def __init__(self, mask_seed: MaskSeed) -> None:
        self.mask_seed = mask_seed
        self.samples: Sequence[tuple[int, int]] = ()  # (pass, window) of each sample in the batch

    @contextmanager
    def attached_to(
        self, network: nn.Module, in_place: Collection[nn.Module] = ()
    ) -> Iterator[None]:
        """Mask the output of the network's dropout layers within the context.

        Args:
            network: in eval mode.
            in_place: layers whose input nothing else reads: it is overwritten.
        """
        handles = [
            layer.register_forward_hook(self._hook(index, layer in in_place))
            for index, layer in enumerate(active_dropout_layers(network))
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(
        self, index: int, in_place: bool
    ) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if len(self.samples) != len(output):
                raise RuntimeError(f"{len(self.samples)} samples announced, {len(output)} arrived")
            seeds = [self.mask_seed(number, window, index) for number, window in self.samples]
            channels, *size = output.shape[1:]
            if not isinstance(layer, nn.Dropout):  # Dropout1d to 3d drop whole channels
                size = [1] * len(size)
            n_units = channels * math.prod(size)
            rate = float(layer.p)  # type: ignore[arg-type]
            # p = 1 drops everything; dividing by 0 would make NaN of it
            scale = 1.0 / (1.0 - rate or 1.0)
            nothing = output.new_zeros(())
            masked = output if in_place else torch.empty_like(output)
            at_once = max(1, UNITS_AT_ONCE // n_units)
            for some in (slice(i, i + at_once) for i in range(0, len(seeds), at_once)):
                kept = kept_units(seeds[some], n_units, rate, output.device)
                # drawn with channels last, as fast passes have them
                mask = kept.to(output.dtype).view(-1, *size, channels).movedim(-1, 1)
                # nothing + scale x values x mask: one reading of the activation
                torch.addcmul(nothing, output[some], mask, value=scale, out=masked[some])
            return masked

        return hook


def kept_units(seeds: Sequence[int], n_units: int, rate: float, device: torch.device) -> Tensor:
    """Which units each mask keeps, 1 or 0, uint8 [masks, n_units].

    On a CPU a unit's draw has 8 bits, and 64 more where those leave it open, which is for one of
    256, so rates are met. Drawing the bits is most of a mask's time: NumPy's SFC64 takes a third of
    the time that torch takes for 16 bits a unit, and compares bytes 20 times as fast. On a GPU it
    is that one's generator, 16 bits a unit.
    """
    if device.type != "cpu":
        return torch.stack([_kept_on_gpu(seed, n_units, rate, device) for seed in seeds])
    streams = [np.random.SFC64(seed) for seed in seeds]
    drawn = [stream.random_raw(-(-n_units // 8)).view(np.uint8)[:n_units] for stream in streams]
    bits = drawn[0][None] if len(drawn) == 1 else np.stack(drawn)
    threshold = int(rate * 256)
    kept = bits >= threshold
    fraction = rate * 256 - threshold  # of the open units that are dropped
    if fraction:
        open_units = np.flatnonzero(bits == threshold)
        ends = np.searchsorted(open_units, n_units * np.arange(len(seeds) + 1))
        more = [s.random_raw(int(n)) for s, n in zip(streams, np.diff(ends), strict=True)]
        kept.reshape(-1)[open_units] = np.concatenate(more) >= np.uint64(fraction * 2**64)
    return torch.from_numpy(kept).view(torch.uint8)


def _kept_on_gpu(seed: int, n_units: int, rate: float, device: torch.device) -> Tensor:
    generator = torch.Generator(device=device)
    generator.manual_seed(seed)
    numbers = torch.empty(-(-n_units // 4), dtype=torch.int64, device=device)
    draws = numbers.random_(-(2**63), None, generator=generator).view(torch.int16)[:n_units]
    return draws.lt(32768 - max(1, round(rate * 65536))).byte()  # from -32768 to 32767
