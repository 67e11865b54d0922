"""Classes that were not annotated are merged with the background, by hand and by gradients."""

from __future__ import annotations

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
    TverskyLoss,
)

from alseg.core.errors import ConfigError
from alseg.training.annotated_loss import AnnotatedLoss
from alseg.training.marginal_loss import check_marginal, marginal_logits

SOFTMAX = {"to_onehot_y": True, "softmax": True}
LOSSES = {
    "dice and cross-entropy": DiceCELoss(**SOFTMAX),
    "of the batch": DiceCELoss(**SOFTMAX, batch=True),
    "weighted": DiceCELoss(**SOFTMAX, weight=torch.tensor([1.0, 2.0, 3.0, 4.0])),
    "focal": FocalLoss(to_onehot_y=True, use_softmax=True),
    "generalised": GeneralizedDiceLoss(**SOFTMAX),
    "tversky": TverskyLoss(**SOFTMAX),
}


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 999),
    annotated=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=3),
)
def test_probabilities_of_unannotated_classes_go_to_the_background(
    seed: int, annotated: list[list[bool]]
) -> None:
    noise = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(len(annotated), 4, 2, 2, 2, generator=noise)
    known = torch.tensor([[True, *each] for each in annotated])
    merged = marginal_logits(logits, known).softmax(dim=1).numpy()
    plain = logits.softmax(dim=1).numpy()
    for b, names in enumerate(known.tolist()):
        background = plain[b, [c for c in range(4) if c == 0 or not names[c]]].sum(axis=0)
        assert np.allclose(merged[b, 0], background, atol=1e-6)
        for c in range(1, 4):
            assert np.allclose(merged[b, c], plain[b, c] if names[c] else 0, atol=1e-6)
            assert names[c] or not merged[b, c].any()


def test_cases_with_all_classes_keep_their_bits() -> None:
    logits = torch.randn(2, 4, 3, 3, 3)
    everything = torch.ones(2, 4, dtype=torch.bool)
    assert marginal_logits(logits, everything) is logits
    everything[1, 2] = False
    assert torch.equal(marginal_logits(logits, everything)[0], logits[0])


@pytest.mark.parametrize("name", LOSSES)
def test_what_an_unannotated_class_is_taken_for_does_not_matter(name: str) -> None:
    logits = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(2, 1, 4, 4, 4, dtype=torch.int8)
    labels[:, :, :2] = 1
    labels[0, :, 3, 3] = -1
    known = torch.tensor([[True, True, False, False]] * 2)
    swapped = logits[:, [3, 1, 0, 2]]
    losses = [
        AnnotatedLoss(LOSSES[name])(marginal_logits(x, known), labels) for x in (logits, swapped)
    ]
    assert torch.isfinite(losses[0])
    assert torch.allclose(*losses)


@pytest.mark.parametrize("name", LOSSES)
def test_background_and_unannotated_classes_share_a_gradient(name: str) -> None:
    """Each gets it by its share of the merged probability."""
    logits = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    logits.requires_grad_()
    labels = torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8)
    labels[:, :, :2] = 1
    known = torch.tensor([[True, True, False, True]])
    LOSSES[name](marginal_logits(logits, known), labels).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    probabilities = logits.detach().softmax(dim=1)
    share = logits.grad / probabilities
    assert torch.allclose(share[:, 0], share[:, 2], atol=1e-4)
    assert logits.grad[:, 2].any()


def test_losses_without_softmax_are_refused() -> None:
    for loss in LOSSES.values():
        check_marginal(loss, 4)
    # the focal part of MONAI's DiceFocalLoss takes sigmoids, whatever its softmax says
    for loss in (DiceLoss(to_onehot_y=True, sigmoid=True), DiceFocalLoss(**SOFTMAX)):
        with pytest.raises(ConfigError, match=r"training\.loss is not of softmax probabilities"):
            check_marginal(loss, 4)
