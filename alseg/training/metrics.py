"""Evaluation: Dice per case and class, calibration, and the area under the budget curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from monai.metrics import compute_dice
from monai.networks.utils import one_hot
from torch import Tensor

from alseg.strategies.statistics import most_likely
from alseg.system.distributed import gathered


class CaseDice:
    """Collects the Dice of each case and foreground class.

    Dice = 2|P∩L| / (|P|+|L|) on hard labels. A class that is absent from a case's label gives NaN
    for that case and is left out of the means (MONAI's convention, as in the tutorial); so does a
    class that was not annotated in the case, as its label then holds none of it.

    Args:
        classes: the foreground class names.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.rows: dict[str, list[float]] = {}

    def reset(self) -> None:
        """Forget all cases."""
        self.rows = {}

    def update(self, case_id: str, prediction: Tensor, label: Tensor) -> None:
        """Add one case.

        Voxels that were not annotated count for nothing.

        Args:
            case_id: the case.
            prediction: class indices, shape [1, 1, D, H, W].
            label: class indices or ``IGNORED``, the same shape.
        """
        n_classes = len(self.classes) + 1
        ignored = label < 0
        if ignored.any():  # background in both of them is what Dice does not see
            prediction, label = (v.masked_fill(ignored, 0) for v in (prediction, label))
        dice = compute_dice(
            one_hot(prediction, n_classes), one_hot(label, n_classes), include_background=False
        )
        self.rows[case_id] = [float(value) for value in dice[0]]

    def take_all(self) -> None:
        """Take in the cases of all devices; a case that several of them had counts once."""
        merged = {case_id: row for rows in gathered(self.rows) for case_id, row in rows.items()}
        self.rows = dict(sorted(merged.items()))

    def table(self) -> pd.DataFrame:
        """One row a case: ``case_id`` and ``dice_CLASS`` for each foreground class."""
        columns = [f"dice_{name}" for name in self.classes]
        table = pd.DataFrame.from_dict(self.rows, orient="index", columns=columns)
        return table.rename_axis("case_id").reset_index()

    def by_class(self) -> dict[str, float]:
        """Mean over cases for each class; NaN for a class that no case has."""
        table = np.array(list(self.rows.values()), dtype=np.float64)  # [cases, classes]
        return {name: _nanmean(table[:, i]) for i, name in enumerate(self.classes)}

    def mean(self) -> float:
        """Mean over foreground classes of the class means; classes no case has are left out."""
        return _nanmean(np.array(list(self.by_class().values())))


class Calibration:
    """Collects a reliability histogram of the predicted probabilities.

    A voxel's confidence is the probability of its most likely class; it is right if that class is
    the label's. Bins have equal width over [0, 1] and are closed below, the last one above as well.

    Source: Guo et al., "On calibration of modern neural networks" (ICML 2017), section 2.
    """

    n_bins = 15

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # of each case: [bins, 3]

    def reset(self) -> None:
        """Forget all cases."""
        self.sums = {}

    def update(self, case_id: str, logits: Tensor, label: Tensor) -> None:
        """Add the voxels of one case.

        Voxels that were not annotated are left out.

        Args:
            case_id: the case.
            logits: shape [1, C, D, H, W].
            label: class indices or ``IGNORED``, shape [1, 1, D, H, W].
        """
        confidence, prediction = torch.softmax(logits.float(), dim=1).flatten(2).max(dim=1)
        annotated = label.flatten(2)[:, 0] >= 0  # [1, voxels], as the two others
        correct = prediction == label.flatten(2)[:, 0]
        if not annotated.all():
            confidence, correct = confidence[annotated], correct[annotated]
        bins = (confidence * self.n_bins).long().clamp(max=self.n_bins - 1).flatten()
        sums = torch.zeros(self.n_bins, 3, dtype=torch.float64, device=bins.device)
        for column, values in enumerate((torch.ones_like(confidence), confidence, correct)):
            sums[:, column].index_add_(0, bins, values.flatten().double())
        self.sums[case_id] = sums.cpu()

    def take_all(self) -> None:
        """Take in the cases of all devices; a case that several of them had counts once."""
        self.sums = {
            case_id: sums for part in gathered(self.sums) for case_id, sums in part.items()
        }

    def table(self) -> pd.DataFrame:
        """One row a bin: ``bin_low``, ``bin_high``, ``n_voxels``, ``confidence`` and ``accuracy``.

        The last two are means over the bin's voxels, NaN where it has none.
        """
        cases = [self.sums[case_id] for case_id in sorted(self.sums)]
        n_voxels, confidence, correct = torch.stack(cases).sum(dim=0).unbind(dim=1)
        edges = np.linspace(0.0, 1.0, self.n_bins + 1)
        return pd.DataFrame(
            {
                "bin_low": edges[:-1],
                "bin_high": edges[1:],
                "n_voxels": n_voxels.long().numpy(),
                "confidence": (confidence / n_voxels).numpy(),
                "accuracy": (correct / n_voxels).numpy(),
            }
        )


def _nanmean(values: np.ndarray) -> float:
    finite = values[~np.isnan(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def hard_labels(logits: Tensor) -> Tensor:
    """The most likely class of each voxel: [B, C, D, H, W] -> [B, 1, D, H, W]."""
    return most_likely(logits, dim=1).unsqueeze(1)
