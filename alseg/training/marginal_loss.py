"""Classes that were not annotated in a case: the background of its label may be any of them.

The marginal loss: the probabilities of these classes are added to the background's, and the loss is
that of the merged ones. G. Shi, L. Xiao, Y. Chen, S. K. Zhou: "Marginal loss and exclusion loss for
partially supervised multi-organ segmentation" (Medical Image Analysis 70, 2021); so do X. Fang,
P. Yan: "Multi-organ segmentation over partially labeled datasets with multi-scale feature
abstraction" (IEEE TMI 39, 2020). The exclusion loss of the former is not used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alseg.core.errors import ConfigError
from alseg.training.recipe import Loss

_ABSENT = -1e4  # a logit whose probability is exactly 0, and the logarithm of it finite


def marginal_logits(logits: Tensor, annotated: Tensor) -> Tensor:
    """Logits of the merged probabilities.

    Softmax of them is 0 for a class that was not annotated, and for the background the sum of its
    own probability and theirs: log(exp x_0 + sum of exp x_c over these classes c).

    Args:
        logits: [B, C, ...].
        annotated: which classes were annotated in each sample, bool [B, C], the background always.

    Returns:
        [B, C, ...]; samples in which all classes were annotated are as they were.
    """
    if annotated.all():
        return logits
    logits = logits.float()
    known = annotated.view(*annotated.shape, *[1] * (logits.ndim - 2))
    merged = ~known
    merged[:, 0] = True
    background = logits.masked_fill(~merged, -math.inf).logsumexp(dim=1, keepdim=True)
    foreground = logits[:, 1:].masked_fill(~known[:, 1:], _ABSENT)
    return torch.cat([background, foreground], dim=1)


@torch.no_grad()
def check_marginal(loss: Loss, n_classes: int, name: str = "training.loss") -> None:
    """Check that a loss is one of softmax probabilities, which can be added up.

    Args:
        loss: from logits [B, C, ...] and labels [B, 1, ...] to a scalar.
        n_classes: C.
        name: of the setting, for the error.

    Raises:
        ConfigError: if it is not: it changes when all logits of a voxel do by the same amount.
    """
    noise = torch.Generator().manual_seed(0)
    logits = torch.randn(1, n_classes, 8, 8, 8, generator=noise)
    shift = torch.randn(1, 1, 8, 8, 8, generator=noise)
    labels = torch.randint(n_classes, (1, 1, 8, 8, 8), generator=noise)
    if not torch.isclose(loss(logits, labels), loss(logits + shift, labels), rtol=1e-4):
        raise ConfigError(
            f"{name} is not of softmax probabilities, which the background and classes that were "
            "not annotated (annotated_classes in dataset.json) are merged by; choose one with "
            "softmax=true"
        )
