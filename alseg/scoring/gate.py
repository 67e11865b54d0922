"""Which windows of a volume can be left out of the stochastic passes, and at what loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alseg.scoring.windows import Windows


def windows_to_keep(windows: Windows, entropy: Tensor, gate: float) -> Sequence[int]:
    """The windows that the stochastic passes have to run on; the others may stay as they are.

    A skipped window contributes its deterministic logits to every pass. Of a voxel v with entropy
    H(v) whose skipped windows have the share q(v) of the weight, that takes away at most

        (1 - (1 - q)²) H(v) = (2q - q²) H(v)

    of the variance over passes: deviations of the logits shrink by 1 - q, and the variance with
    their square (to first order). And no voxel's variance is larger than its entropy: for any
    passes sum_{c>=1} Var p_t[c] <= sum_{c>=1} p̄_c (1 - p̄_c) <= 1 - sum_c p̄_c² <= H[p̄], as
    -log p >= 1 - p. The same holds for the mutual information and the expected entropy. H is taken
    of the deterministic prediction, so the premise is p̄ = p_det, dropout's weight scaling rule.

    Windows are skipped from the least entropy on, as long as the sum of these losses over voxels
    stays below ``gate`` times the sum of H. At least one window is kept.

    Args:
        windows: of the volume.
        entropy: of the deterministic prediction, [D', H', W'] of the padded volume, 0 outside the
            volume.
        gate: the largest share of the entropy that may be lost, in [0, 1); 0 keeps all windows.
    """
    allowed = gate * float(entropy.double().sum())
    shares = [windows.importance / windows.weight[box] for box in windows.boxes]
    potential = torch.stack(
        [(entropy[box] * share).sum() for box, share in zip(windows.boxes, shares, strict=True)]
    )
    *order, last = potential.argsort(stable=True).tolist()
    skipped = torch.zeros_like(entropy)  # q
    kept, lost = [last], 0.0
    for place, index in enumerate(order):
        box, share = windows.boxes[index], shares[index]
        added = share * (2 * (1 - skipped[box]) - share)  # to 2q - q²
        lost += float((entropy[box] * added).sum())
        if lost >= allowed:
            kept += order[place:]
            break
        skipped[box] += share
    return sorted(kept)
