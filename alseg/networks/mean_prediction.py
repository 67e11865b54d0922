"""The mean prediction of several networks that were trained one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MeanPrediction(nn.Module):
    """Several networks as one: its softmax is the mean of theirs.

    Args:
        networks: of the same classes, one at least.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Images to the logarithm of the mean probabilities, [B, C, ...], float32."""
        each = [torch.log_softmax(network(x).float(), dim=1) for network in self.networks]
        return torch.logsumexp(torch.stack(each), dim=0) - math.log(len(each))
