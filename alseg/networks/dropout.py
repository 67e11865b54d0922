"""Dropout layers, and masks for them that depend only on a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from alseg.core.errors import ConfigError

# (pass, window, layer) -> seed of one dropout mask
MaskSeed = Callable[[int, int, int], int]


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
        self.samples: list[tuple[int, int]] = []  # (pass, window) of each sample in the batch

    @contextmanager
    def attached_to(self, network: nn.Module) -> Iterator[None]:
        """Mask the output of the network's dropout layers within the context."""
        handles = [
            layer.register_forward_hook(self._hook(index))
            for index, layer in enumerate(active_dropout_layers(network))
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output * self._scaled_mask(layer, index, output)

        return hook

    def _scaled_mask(self, layer: nn.Module, index: int, output: Tensor) -> Tensor:
        """Masks of 0 or 1/(1-p), one for each sample; Dropout1d to 3d drop whole channels.

        A unit's draw has 16 bits, four to a random number of 64, so rates are met to 1/65536. On a
        CPU that takes a quarter of the time of ``uniform_``, and a seventh of ``bernoulli_``'s,
        which at full resolution is a third of a pass.
        """
        if len(self.samples) != len(output):
            raise RuntimeError(f"{len(self.samples)} samples announced, {len(output)} arrived")
        shape = output.shape[1:]
        if not isinstance(layer, nn.Dropout):
            shape = torch.Size([shape[0], *[1] * (len(shape) - 1)])
        rate = float(layer.p)  # type: ignore[arg-type]
        generator = torch.Generator(device=output.device)
        n_numbers = -(-shape.numel() // 4)
        numbers = torch.empty((len(output), n_numbers), dtype=torch.int64, device=output.device)
        for row, (pass_index, window) in zip(numbers, self.samples, strict=True):
            generator.manual_seed(self.mask_seed(pass_index, window, index))
            row.random_(-(2**63), None, generator=generator)
        draws = numbers.view(torch.int16)[:, : shape.numel()].float()  # from -32768 to 32767
        kept = draws.lt_(32768 - max(1, round(rate * 65536)))  # 1 or 0
        # p = 1 drops everything; dividing by 0 would make NaN of it
        mask = kept.div_(1.0 - rate or 1.0).to(output.dtype)
        return mask.reshape(len(output), *shape)
