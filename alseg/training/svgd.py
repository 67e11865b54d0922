"""Stein variational gradient descent: a committee of networks trained jointly.

Q. Liu, D. Wang: "Stein variational gradient descent: a general purpose Bayesian inference
algorithm" (NeurIPS 2016). For active learning of segmentation: V. Nath et al., "Diminishing
uncertainty within the training pool" (IEEE TMI 40, 2020; arXiv 2101.02323).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn

from alseg.networks.committee import Committee
from alseg.training.module import SegmentationModule


@dataclass(frozen=True)
class Kernel:
    """The RBF kernel of M particles, k(a, b) = exp(-|a - b|² / h).

    Attributes:
        values: k of each pair, [M, M].
        bandwidth: h; infinite where all particles are the same, who then share their gradients and
            do not repel each other.
    """

    values: Tensor
    bandwidth: float


def rbf_kernel(squared_distances: Tensor) -> Kernel:
    """The kernel whose bandwidth follows the median heuristic, h = med² / log M.

    med is the median distance of the M (M - 1) / 2 distinct pairs (the authors' code takes all M²,
    the zeros of the diagonal among them, which would halve it or worse for a handful of networks).
    So sum_j k(a_i, a_j) is about 2: a particle's own gradient weighs as much as the others'
    together.

    Source: Liu and Wang (2016), section 5.

    Args:
        squared_distances: [M, M].
    """
    n = len(squared_distances)
    pairs = squared_distances[*torch.triu_indices(n, n, offset=1)]
    # of an even number of pairs the mean of the middle two, as in statistics
    median = float(pairs.sqrt().quantile(0.5)) if len(pairs) else 0.0
    if median == 0:
        return Kernel(torch.ones_like(squared_distances), math.inf)
    bandwidth = median**2 / math.log(n)
    return Kernel(torch.exp(-squared_distances / bandwidth), bandwidth)


def stein_direction(particles: Tensor, scores: Tensor, kernel: Kernel) -> Tensor:
    """phi_i = 1/M sum_j [k(x_j, x_i) grad log p(x_j) + grad_{x_j} k(x_j, x_i)].

    The first term pulls all particles uphill by each other's gradients, the second one,
    2/h sum_j k(x_j, x_i) (x_i - x_j), keeps them apart.

    Source: Liu and Wang (2016), equation 8; Nath et al. (2020), equation 1.

    Args:
        particles: [M, P], or the same some of the coordinates of all of them.
        scores: grad log p of each particle, the same shape.
        kernel: of the whole particles.
    """
    k = kernel.values.to(particles.dtype)
    repulsion = (k.sum(dim=1, keepdim=True) * particles - k @ particles) * (2 / kernel.bandwidth)
    return (k @ scores + repulsion) / len(particles)


@torch.no_grad()
def stein_gradients(particles: Sequence[nn.Module]) -> None:
    """Replace the gradients of a loss, -log p, by -phi, in place.

    One particle keeps its gradients: it is its own only neighbour, with k = 1 and no repulsion.
    Works tensor by tensor, so beyond one layer of all particles it needs no memory. Buffers, such
    as batch norm's, stay each particle's own.
    """
    if len(particles) == 1:
        return
    tensors = list(zip(*(p.parameters() for p in particles), strict=True))
    flat = [torch.stack([p.flatten() for p in same]) for same in tensors]  # each [M, size]
    kernel = rbf_kernel(sum((_squared_distances(f) for f in flat), start=torch.zeros(())))
    for same, values in zip(tensors, flat, strict=True):
        if same[0].grad is None:
            continue
        scores = -torch.stack([_gradient(p).flatten() for p in same])
        for parameter, phi in zip(same, stein_direction(values, scores, kernel), strict=True):
            parameter.grad = -phi.view_as(parameter)


def _squared_distances(points: Tensor) -> Tensor:
    """[M, P] -> [M, M], in float32 or better; differences, so that copies are at exactly 0."""
    points = points.float() if points.dtype in (torch.float16, torch.bfloat16) else points
    return torch.stack([(points - point).square().sum(dim=1) for point in points])


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


class LogDice(nn.Module):
    """-log Dice: the negative logarithm of a likelihood that is the soft Dice coefficient.

    Dice = 2 sum y p / (sum y² + sum p²), the mean over foreground classes, in (0, 1].

    Source: Nath et al. (2020), "Dice log-likelihood". They write log(L_Dice) of the Dice *loss*
    L_Dice = 1 - Dice. Taken by the letter and minimised, it has no minimum (log 0) and steps that
    grow without bound as the fit gets better; we read it as the likelihood log(1 - L_Dice).

    Args:
        batch: one Dice over all samples of a batch, in which patches without a class do not count
            as misses.
    """

    def __init__(self, *, batch: bool = True) -> None:
        super().__init__()
        self.dice_loss = DiceLoss(
            include_background=False, to_onehot_y=True, softmax=True, squared_pred=True, batch=batch
        )

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Logits [B, C, d, h, w] and labels [B, 1, d, h, w] to a scalar."""
        # The floor is for a Dice that underflows: log 0 has no gradient.
        return -torch.log((1 - self.dice_loss(logits.float(), label)).clamp(min=1e-6))


class SteinModule(SegmentationModule):
    """Trains a ``Committee`` with SVGD; evaluates its first particle and scores with all.

    Takes the arguments of ``SegmentationModule``, with a ``Committee`` as the network.
    """

    network: Committee

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step of all particles on the same patches; logs the mean of their losses."""
        losses = torch.stack([self.batch_loss(p, batch) for p in self.network.particles])
        self.log_loss(losses.mean(), len(batch["image"]), batch_idx)
        # The sum: each particle gets the gradient of its own loss.
        return losses.sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the particles' gradients into SVGD's direction."""
        stein_gradients(list(self.network.particles))
