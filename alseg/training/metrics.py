"""Evaluation: metrics per case and class, and calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from alseg.core.metric_names import DICE, HD95, UNDEFINED_HD95
from alseg.strategies.statistics import most_likely
from alseg.system.distributed import gathered
from alseg.training.class_metrics import VoxelSize, class_metrics
from alseg.training.evaluation import ZERO, Evaluation


class CaseMetrics:
    """Collects the metrics of each case and foreground class.

    A class that is absent from a case's reference gives NaN for that case and is left out of the
    means, unless ``evaluation.absent`` says otherwise; so does, always, a class that was not
    annotated in the case.

    Args:
        classes: the foreground class names.
        evaluation: which metrics, and what an absent class counts.
    """

    def __init__(self, classes: Sequence[str], evaluation: Evaluation | None = None) -> None:
        self.classes = tuple(classes)
        self.evaluation = evaluation or Evaluation()
        self.rows: dict[str, list[float]] = {}  # in the order of ``columns``

    @property
    def columns(self) -> tuple[str, ...]:
        """What a case's row holds: ``dice_CLASS``, ..., and how many HD95 are not defined."""
        names = [f"{metric}_{name}" for metric in self.evaluation.metrics for name in self.classes]
        return (*names, UNDEFINED_HD95) if HD95 in self.evaluation.metrics else tuple(names)

    def update(
        self,
        case_id: str,
        prediction: Tensor,
        label: Tensor,
        affine: Tensor | None = None,
        annotated: Tensor | None = None,
    ) -> None:
        """Add one case.

        Voxels that were not annotated count for nothing: they are background in both, and a case
        without any other voxel has no metric, whatever an absent class counts. One class after
        another: besides what is given, memory holds a few masks.

        Args:
            case_id: the case.
            prediction: class indices, shape [1, 1, D, H, W].
            label: class indices or ``IGNORED``, the same shape.
            affine: the voxel-to-world matrix of both in mm, [4, 4]; only distances need it.
            annotated: the classes that were annotated in the case, bool [C]; None for all.
        """
        known, ignored = self.evaluation, label[0, 0] < 0
        may_count = known.absent == ZERO and not bool(ignored.all())
        size = None
        if known.needs_distances:
            assert affine is not None
            size = VoxelSize.of(affine, label.shape[2:], case_id)
        found = []
        for index, name in enumerate(self.classes, start=1):
            absent_counts = may_count and (annotated is None or bool(annotated[index]))
            predicted = (prediction[0, 0] == index) & ~ignored
            found.append(
                class_metrics(
                    predicted,
                    label[0, 0] == index,
                    known.metrics,
                    absent_counts=absent_counts,
                    tolerance_mm=known.tolerance_of(name),
                    size=size,
                )
            )
        row = [each.values[metric] for metric in known.metrics for each in found]
        if HD95 in known.metrics:
            row.append(float(sum(each.is_undefined for each in found)))
        self.rows[case_id] = row

    def take_all(self) -> None:
        """Take in the cases of all devices; a case that several of them had counts once."""
        merged = {case_id: row for rows in gathered(self.rows) for case_id, row in rows.items()}
        self.rows = dict(sorted(merged.items()))

    def table(self) -> pd.DataFrame:
        """One row a case: ``case_id`` and ``columns``."""
        table = pd.DataFrame.from_dict(self.rows, orient="index", columns=list(self.columns))
        if UNDEFINED_HD95 in table:
            table = table.astype({UNDEFINED_HD95: int})
        return table.rename_axis("case_id").reset_index()

    def by_class(self, metric: str = DICE) -> dict[str, float]:
        """Mean over cases for each class; NaN for a class that counts in no case."""
        table = np.array(list(self.rows.values()), dtype=np.float64)  # [cases, columns]
        columns = self.columns
        return {
            name: _nanmean(table[:, columns.index(f"{metric}_{name}")]) for name in self.classes
        }

    def mean(self, metric: str = DICE) -> float:
        """Mean over foreground classes of the class means; classes without one are left out."""
        return _nanmean(np.array(list(self.by_class(metric).values())))

    @property
    def n_undefined_hd95(self) -> int:
        """How many times a class had no HD95, as only one of prediction and reference had it."""
        return sum(int(row[-1]) for row in self.rows.values())


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
