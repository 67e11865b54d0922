"""Losses of annotated voxels only."""

from __future__ import annotations

import torch
from torch import Tensor

from alseg.core.errors import ConfigError
from alseg.training.recipe import Loss


class AnnotatedLoss:
    """A loss that is given the annotated voxels of a batch and no others.

    Where nothing is ignored the loss is called as it is. Else the annotated voxels of each sample
    get the loss, as a sample [1, C, n] without a shape in space, and the loss of the batch is the
    mean over its samples. To a loss for which it makes no difference which sample of a batch a
    voxel is in, such as a voxel-wise one or one Dice a batch, all annotated voxels of the batch are
    given together: each of them weighs the same. Samples without any annotated voxel add nothing; a
    batch without any has the loss 0 and gradients of 0.

    Args:
        loss: from logits [B, C, d, h, w] and labels [B, 1, d, h, w] to a scalar.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self._pools_samples: bool | None = None

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, C, d, h, w] and labels [B, 1, d, h, w], of which some are ``IGNORED``.

        Raises:
            ConfigError: if some are and the loss, or the network, cannot do without them.
        """
        if not labels.dtype.is_signed:  # not a look at a voxel for whole labels
            return self.loss(logits, labels)
        annotated = labels >= 0
        if annotated.all():
            return self.loss(logits, labels)
        if not isinstance(logits, Tensor) or logits.shape[2:] != labels.shape[2:]:
            raise ConfigError(
                "the network gives several outputs for a patch (deep supervision), which training "
                "on partly annotated volumes does not take; set "
                "model.network.deep_supervision=false"
            )
        parts = [
            (_chosen(logits[i : i + 1], keep), _chosen(labels[i : i + 1], keep))
            for i, keep in enumerate(annotated.flatten(1))
            if keep.any()
        ]
        if not parts:
            return (logits * 0.0).sum()
        if self._pools_samples is None:
            self._pools_samples = pools_samples(self.loss, logits.shape[1], logits.device)
        if self._pools_samples:
            chosen_logits, chosen_labels = zip(*parts, strict=True)
            return self.loss(torch.cat(chosen_logits, dim=2), torch.cat(chosen_labels, dim=2))
        return torch.stack([self.loss(*part) for part in parts]).mean()


def _chosen(volumes: Tensor, keep: Tensor) -> Tensor:
    """Voxels of a volume: [1, C, d, h, w] and a mask [d h w] to [1, C, n]."""
    return volumes.flatten(2).index_select(2, keep.nonzero().flatten())


@torch.no_grad()
def pools_samples(
    loss: Loss, n_classes: int, device: torch.device | str = "cpu", *, name: str = "training.loss"
) -> bool:
    """Whether it makes no difference to a loss which sample of a batch a voxel is in.

    Found out on an invented batch.

    Args:
        loss: from logits [B, C, ...] and labels [B, 1, ...] to a scalar.
        n_classes: C.
        device: where the loss computes.
        name: of the setting, for the error.

    Raises:
        ConfigError: if the loss depends on where voxels lie, so that none can be left out.
    """
    noise = torch.Generator().manual_seed(0)
    logits = torch.randn(2, n_classes, 4, 4, 4, generator=noise).to(device)
    labels = torch.randint(n_classes, (2, 1, 4, 4, 4), generator=noise).to(device)
    labels[1, :, 1:] = 0  # the samples differ in what they hold
    order = torch.randperm(64, generator=noise).to(device)
    shuffled = logits.flatten(2)[:, :, order], labels.flatten(2)[:, :, order]
    pooled = (volumes.movedim(0, 1).flatten(1).unsqueeze(0) for volumes in shuffled)
    try:
        with torch.autocast(logits.device.type, enabled=False):
            whole, listed, together = loss(logits, labels), loss(*shuffled), loss(*pooled)
    except Exception as error:  # losses let errors of all kinds through
        raise ConfigError(_needs_volumes(name, f"it fails on a list of voxels: {error}")) from error
    if not torch.isclose(whole, listed, rtol=1e-4):
        raise ConfigError(_needs_volumes(name, "its value changes when voxels change places"))
    return bool(torch.isclose(whole, together, rtol=1e-4))


def _needs_volumes(name: str, reason: str) -> str:
    return (
        f"{name} depends on where voxels lie, so it cannot leave those out that are not "
        f"annotated ({reason}); choose one of single voxels or of overlap, such as DiceCELoss"
    )
