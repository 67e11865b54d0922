"""Losses in which samples weigh differently."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def weighted_loss(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor, weights: Tensor
) -> Tensor:
    """(n L(samples of weight 1) + sum of w_i L(sample i) over the others) / B.

    Samples of weight 1 share one loss, so a loss over the batch, such as one Dice a batch, means
    for them what it means without pseudo-labels.

    Args:
        loss: from logits [B, C, d, h, w] and labels [B, 1, d, h, w] to a scalar.
        logits: of the batch.
        labels: of the batch.
        weights: [B].
    """
    whole = weights == 1
    parts = [
        weights[i] * loss(logits[i : i + 1], labels[i : i + 1])
        for i in torch.nonzero(~whole).flatten().tolist()
    ]
    if whole.any():
        parts.append(whole.sum() * loss(logits[whole], labels[whole]))
    return torch.stack(parts).sum() / len(weights)
