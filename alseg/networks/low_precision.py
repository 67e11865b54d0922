"""Whether a network computes in bfloat16 on this CPU what it computes in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from alseg.core.errors import PrecisionError

# Of the logits' norm. Rounding makes 0.003 in a network of 28 convolutions.
MOST = 0.2
# Of windows that a network is checked with: of a training, an evaluation and a scoring. An inferer
# of whole volumes may have one a volume, and a check takes two passes.
MOST_SIZES = 4

_checked: WeakKeyDictionary[nn.Module, set[tuple[torch.Size, torch.dtype]]] = WeakKeyDictionary()


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """What autocast computes in on a device; None where it is off."""
    if not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


@torch.no_grad()
def check_low_precision(network: nn.Module, windows: Tensor) -> None:
    """Check that a network's logits in autocast's precision are those in float32, but for rounding.

    The oneDNN 3.12 of torch 2.13 computes some convolutions wrongly in bfloat16 on a CPU with AMX:
    with a stride along the last axis where one voxel is left (pytorch issue 169688), and others.
    Does nothing without autocast, on a GPU, for a size that has been checked, or after
    ``MOST_SIZES`` of them.

    Args:
        network: any; its weights, statistics and mode stay as they are.
        windows: [B, channels, d, h, w].

    Raises:
        PrecisionError: if they are others.
    """
    precision = autocast_dtype("cpu")
    if windows.device.type != "cpu" or precision is None:
        return
    seen = _checked.setdefault(network, set())
    if (key := (windows.shape[1:], precision)) in seen or len(seen) >= MOST_SIZES:
        return
    with _in_eval_mode(network):
        logits = network(windows).float()
        with torch.autocast("cpu", enabled=False):
            expected = network(windows.float())
    difference, norm = float((logits - expected).norm()), float(expected.norm())
    if not difference <= MOST * norm:  # nor if one is no number; a last layer may be of zeros
        size = " x ".join(map(str, windows.shape[2:]))
        share = difference / norm if norm else math.inf
        raise PrecisionError(
            f"in {precision} this CPU gives wrong numbers for the network and windows of {size}: "
            f"they differ from those in float32 by {share:.0%} of their norm (torch "
            f"{torch.__version__}); use trainer.precision=32-true"
        )
    seen.add(key)


@contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[None]:
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
