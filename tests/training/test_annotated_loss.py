"""Losses leave out the voxels that were not annotated, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import (
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    GeneralizedDiceLoss,
    HausdorffDTLoss,
    SoftclDiceLoss,
    TverskyLoss,
)
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy

from alseg.core.errors import ConfigError
from alseg.core.units import IGNORED
from alseg.training.annotated_loss import AnnotatedLoss, pools_samples
from alseg.training.svgd import LogDice
from alseg.training.weighting import weighted_loss

SOFTMAX = {"to_onehot_y": True, "softmax": True}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return torch_cross_entropy(logits, labels[:, 0].long())


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dice and cross-entropy": DiceCELoss(**SOFTMAX),
    "dice and cross-entropy of the batch": DiceCELoss(**SOFTMAX, batch=True),
    "dice and focal": DiceFocalLoss(**SOFTMAX),
    "generalised dice": GeneralizedDiceLoss(**SOFTMAX),
    "generalised dice of the batch": GeneralizedDiceLoss(**SOFTMAX, batch=True),
    "tversky": TverskyLoss(**SOFTMAX),
    "focal": FocalLoss(to_onehot_y=True, use_softmax=True),
    "log dice": LogDice(),
    "cross-entropy": cross_entropy,
}


def batch(seed: int, ignored: float, n: int = 3) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 3, 4, 5, 3, generator=noise)
    labels = torch.randint(3, (n, 1, 4, 5, 3), generator=noise)
    labels[torch.rand(labels.shape, generator=noise) < ignored] = IGNORED
    return logits, labels.to(torch.int8)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_changes_where_nothing_is_ignored(name: str) -> None:
    logits, labels = batch(0, ignored=0)
    assert torch.equal(AnnotatedLoss(LOSSES[name])(logits, labels), LOSSES[name](logits, labels))


@pytest.mark.parametrize("name", LOSSES)
def test_predictions_for_ignored_voxels_matter_to_no_loss(name: str) -> None:
    logits, labels = batch(1, ignored=0.6)
    other = torch.where(labels < 0, 100 * torch.randn(logits.shape), logits).requires_grad_()
    logits.requires_grad_()
    loss = AnnotatedLoss(LOSSES[name])
    losses = loss(logits, labels), loss(other, labels)
    assert torch.equal(*losses)
    one, two = (
        torch.autograd.grad(value, x)[0] for value, x in zip(losses, (logits, other), strict=True)
    )
    assert torch.equal(one, two)
    assert one.any()
    assert not one[(labels < 0).expand_as(one)].any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_region_counts_as_a_volume_of_its_own(name: str) -> None:
    logits, labels = batch(2, ignored=0)
    inside = (..., slice(1, 3), slice(2, 5), slice(0, 2))
    partial_labels = torch.full_like(labels, IGNORED)
    partial_labels[inside] = labels[inside]
    expected = LOSSES[name](logits[inside], labels[inside])
    assert torch.allclose(AnnotatedLoss(LOSSES[name])(logits, partial_labels), expected)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


def dice_by_hand(logits: np.ndarray, labels: np.ndarray, samples: list[list[int]]) -> float:
    """Voxel after voxel; the samples of a group share one Dice."""
    probabilities, groups = softmax(logits.astype(float)), []
    for group in samples:
        terms = []
        for c in range(logits.shape[1]):
            overlap = size = 0.0
            for b in group:
                for place in np.ndindex(labels.shape[2:]):
                    label = labels[(b, 0, *place)]
                    if label != IGNORED:
                        p = probabilities[(b, c, *place)]
                        overlap += p * (label == c)
                        size += p + (label == c)
            terms.append(1 - (2 * overlap + 1e-5) / (size + 1e-5))
        groups.append(np.mean(terms))
    return float(np.mean(groups))


LABELS = arrays.arrays(np.int8, (3, 1, 2, 2, 2), elements=st.integers(-1, 2))


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, seed=st.integers(0, 99))
def test_dice_agrees_with_a_loop_over_annotated_voxels(labels: np.ndarray, seed: int) -> None:
    logits = torch.randn(3, 3, 2, 2, 2, generator=torch.Generator().manual_seed(seed))
    annotated = [b for b in range(3) if (labels[b] != IGNORED).any()]
    for one_dice in (False, True):
        loss = AnnotatedLoss(DiceLoss(**SOFTMAX, batch=one_dice))(logits, torch.tensor(labels))
        groups = [annotated] if one_dice else [[b] for b in annotated]
        expected = dice_by_hand(logits.numpy(), labels, groups) if annotated else 0.0
        assert float(loss) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, seed=st.integers(0, 99))
def test_cross_entropy_agrees_with_torchs_own_ignored_index(labels: np.ndarray, seed: int) -> None:
    logits = torch.randn(3, 3, 2, 2, 2, generator=torch.Generator().manual_seed(seed))
    target = torch.tensor(labels)
    expected = torch_cross_entropy(logits, target[:, 0].long(), ignore_index=IGNORED)
    if (labels == IGNORED).all():
        expected = torch.zeros(())
    assert torch.allclose(AnnotatedLoss(cross_entropy)(logits, target), expected, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_annotated_voxels_has_no_loss_and_no_gradient(name: str) -> None:
    logits, labels = batch(3, ignored=1)
    logits.requires_grad_()
    loss = AnnotatedLoss(LOSSES[name])(logits, labels)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_sample_without_annotated_voxels_adds_nothing(name: str) -> None:
    logits, labels = batch(4, ignored=0.3)
    labels[1] = IGNORED
    loss = AnnotatedLoss(LOSSES[name])
    assert torch.equal(loss(logits, labels), loss(logits[[0, 2]], labels[[0, 2]]))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("value", [0, 2])
def test_one_annotated_voxel_gives_finite_gradients(name: str, value: int) -> None:
    logits, labels = batch(9, ignored=1)
    labels[0, 0, 1, 2, 1] = value
    logits.requires_grad_()
    AnnotatedLoss(LOSSES[name])(logits, labels).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, :, 1, 2, 1].any()


def test_whole_and_partial_samples_share_a_batch() -> None:
    logits, labels = batch(5, ignored=0)
    labels[1, :, 2:] = IGNORED
    loss = DiceCELoss(**SOFTMAX)
    parts = [loss(logits[[0]], labels[[0]]), loss(logits[[1], :, :2], labels[[1], :, :2])]
    parts.append(loss(logits[[2]], labels[[2]]))
    assert torch.allclose(AnnotatedLoss(loss)(logits, labels), torch.stack(parts).mean())


def test_pseudo_labels_and_regions_share_a_batch() -> None:
    logits, labels = batch(6, ignored=0)
    labels[0, :, 1:] = IGNORED
    loss = AnnotatedLoss(DiceCELoss(**SOFTMAX, batch=True))
    weighted = weighted_loss(loss, logits, labels, torch.tensor([1.0, 1.0, 0.25]))
    expected = (2 * loss(logits[:2], labels[:2]) + 0.25 * loss(logits[2:], labels[2:])) / 3
    assert torch.allclose(weighted, expected)


def test_bfloat16_logits_are_taken() -> None:
    logits, labels = batch(7, ignored=0.5)
    loss = AnnotatedLoss(DiceCELoss(**SOFTMAX))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = loss(logits.bfloat16(), labels)
    assert float(low) == pytest.approx(float(loss(logits, labels)), rel=0.02)


def test_losses_that_need_the_place_of_a_voxel_are_refused() -> None:
    def rough(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.diff(dim=2).abs().mean()

    for loss in (HausdorffDTLoss(**SOFTMAX), SoftclDiceLoss(), rough):
        with pytest.raises(ConfigError, match=r"training\.loss depends on where voxels lie"):
            pools_samples(loss, 3)


def test_one_dice_a_batch_is_told_from_one_a_sample() -> None:
    assert pools_samples(DiceLoss(**SOFTMAX, batch=True), 3)
    assert not pools_samples(DiceLoss(**SOFTMAX), 3)
    assert pools_samples(cross_entropy, 2)
    assert pools_samples(partial(cross_entropy), 5)


def test_deep_supervision_is_refused_where_voxels_are_ignored() -> None:
    logits, labels = batch(8, ignored=0.5)
    with pytest.raises(ConfigError, match="deep_supervision=false"):
        AnnotatedLoss(DiceCELoss(**SOFTMAX))(torch.stack([logits, logits], dim=1), labels)
