"""Where in a network dropout acts: MONAI's networks have it in every block."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alseg.core.errors import ConfigError, check_choice
from alseg.networks.dropout import active_dropout_layers
from alseg.networks.features import depth

PLACEMENTS = ("all", "decoder", "bottleneck")


def place_dropout(
    network: nn.Module, placement: str, n_channels: int, patch_size: Sequence[int]
) -> None:
    """Switch off the dropout layers (p = 0) that lie elsewhere.

    Scoring computes what comes before the first active dropout once for all passes, so the later
    dropout begins, the cheaper a pass is; and the less of the network its masks vary.

    Args:
        network: an encoder-decoder of any architecture.
        placement: ``all`` leaves them as they are; ``bottleneck`` keeps those whose output has the
            fewest voxels of any layer's; ``decoder`` keeps those and all that come after.
        n_channels: of the input.
        patch_size: of the input, in voxels.

    Raises:
        ConfigError: if the placement is unknown, or none of the dropout layers lies there.
    """
    check_choice("model.dropout_placement", placement, PLACEMENTS)
    layers = active_dropout_layers(network)
    if placement == "all" or not layers:
        return
    sizes = _output_sizes(network, n_channels, patch_size)  # in the order of the forward pass
    deepest = min(sizes.values())
    names = list(sizes)
    first = next(place for place, name in enumerate(names) if sizes[name] == deepest)
    if placement == "bottleneck":
        wanted = {name for name in names if sizes[name] == deepest}
    else:
        wanted = set(names[first:])
    kept = {network.get_submodule(name) for name in wanted} & set(layers)
    if not kept:
        raise ConfigError(
            f"model.dropout_placement is {placement!r}, but {type(network).__name__} has no "
            "dropout there: use model.dropout_placement=all"
        )
    for layer in layers:
        if layer not in kept:
            layer.p = 0.0


def _output_sizes(network: nn.Module, n_channels: int, patch_size: Sequence[int]) -> dict[str, int]:
    """Voxels of each layer's output, by name, in the order in which the layers first run."""
    shadow = copy.deepcopy(network).to("meta").eval()  # shapes only: no memory, no arithmetic
    sizes: dict[str, int] = {}
    for name, module in shadow.named_modules():
        if list(module.children()):
            continue

        def see(layer: nn.Module, inputs: object, output: Tensor, name: str = name) -> None:
            if depth(output) is not None:
                sizes.setdefault(name, output.shape[2:].numel())

        module.register_forward_hook(see)
    with torch.no_grad():
        shadow(torch.empty(1, n_channels, *patch_size, device="meta"))
    return sizes
