"""Which windows of a volume a stochastic pass runs: those that matter, and a sample of the others.

Most of a volume's variance lies in few of its windows, and a deterministic pass tells which. The
others cannot be left out: the share that they have differs from volume to volume. A random few of
them stand for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from alseg.scoring.windows import Windows


def sensitivity(probabilities: Tensor, *, of_information: bool = False) -> Tensor:
    """How much a measure answers to noise in the logits: [C, ...] -> [...].

    To second order, under independent logit noise of variance 1. The variance of the foreground's
    probabilities is the sum over classes c >= 1 of the squared gradient of p_c; with
    dp_c / dl_k = p_c (1[c = k] - p_k) that is sum_{c>=1} p_c² (1 - 2 p_c + sum_k p_k²). The mutual
    information is half the trace of the softmax's Jacobian, (1 - sum_k p_k²) / 2.

    Rejected: the entropy. Where the network is sure it is up to 30 times larger against the
    variance than where it is not, so it keeps windows that hardly vary.

    Args:
        probabilities: of the deterministic prediction.
        of_information: of the mutual information, else of the variance.
    """
    squares = probabilities.square()
    total = squares.sum(dim=0)
    if of_information:
        return (1 - total) / 2
    total += 1
    return (squares[1:] * (total - 2 * probabilities[1:])).sum(dim=0)


def expectation(windows: Windows, sensitivity: Tensor) -> tuple[Tensor, np.ndarray]:
    """What the measure is expected to be if all windows' logits have noise of variance 1.

    A window that has the share a of a voxel's blending weight adds a² times its own logits'
    variance to the voxel's, as windows have masks of their own.

    Args:
        windows: of the volume.
        sensitivity: of the deterministic prediction, [D', H', W'] of the padded volume, 0 outside
            the volume.

    Returns:
        A map [D, H, W] of the volume, and the share of it that each window has, summing to 1, [n].
    """
    expected = torch.zeros_like(sensitivity)
    of_windows = np.zeros(len(windows.boxes))
    for index, box in enumerate(windows.boxes):
        own = (windows.importance / windows.weight[box]).square_().mul_(sensitivity[box])
        expected[box] += own
        of_windows[index] = float(own.sum())
    total = of_windows.sum()
    n_windows = len(of_windows)
    shares = of_windows / total if total else np.full(n_windows, 1 / n_windows)
    return expected[windows.inside], shares


def chances(shares: np.ndarray, gate: float) -> np.ndarray:
    """The probability with which a pass runs each window, positive and at most 1, [n].

    From the least share on, windows become optional as long as all optional ones together have at
    most the share ``gate``. Their probability is their share over the least share of the others,
    so one that is drawn stands for about as much as one that is always run.

    Args:
        shares: expected, summing to 1.
        gate: in [0, 1); 0 runs all windows that have any share.
    """
    order = np.argsort(shares, kind="stable")
    n_optional = int((np.cumsum(shares[order]) <= gate).sum())
    least = shares[order[min(n_optional, len(shares) - 1)]]
    # a window without any share may yet be wrong: it is not left out for good
    return np.clip(np.maximum(shares, 1e-6) / max(least, 1e-6), 0, 1)


def drawn(chances: np.ndarray, start: float) -> Sequence[int]:
    """The windows of one pass: a systematic sample with just these probabilities.

    Windows are laid side by side in descending order, each as long as its probability; those that
    hold one of the points start, start + 1, start + 2, ... are in (Madow, 1949). Neighbours in the
    order never come together, which is a stratification by the expected share.

    Args:
        chances: in (0, 1].
        start: uniform in [0, 1).
    """
    order = np.argsort(-chances, kind="stable")
    ends = np.cumsum(chances[order])
    n_points = np.ceil(ends - start).clip(0)  # before each window's end
    is_in = np.diff(n_points, prepend=0) > 0
    return sorted(order[is_in].tolist())
