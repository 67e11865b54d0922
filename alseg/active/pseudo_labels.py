"""Pseudo-labels of unlabelled volumes: predicted, judged and kept on disk.

V. Nath, D. Yang, H. R. Roth, D. Xu: "Warm start active learning with proxy labels and selection via
semi-supervised fine-tuning" (MICCAI 2022; arXiv 2209.06285).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from alseg.core.errors import check_number, check_whole_number
from alseg.scoring.scorer import Scoring
from alseg.strategies.aggregations import foreground_mean
from alseg.strategies.measures import entropy
from alseg.strategies.statistics import VoxelStatistics, class_dtype
from alseg.system.files import write_tensors


@dataclass(frozen=True)
class SemiSupervised:
    """The second stage of a round: fine-tuning with pseudo-labels of unlabelled volumes.

    The paper has two stages in each iteration, supervised and then semi-supervised from the first
    one's network. Settings here, where it leaves a detail open or we could not read it: the steps
    of the second stage are a share of the round's, so that a round costs as many steps as without
    it; the learning rate is constant and smaller; the best weights of both stages by validation
    are the round's.

    Args:
        step_share: steps of the second stage, as a share of ``steps_per_round``, in (0, 1).
        case_share: the share of the unlabelled volumes, those of the least uncertainty, whose
            pseudo-labels are used, in (0, 1].
        max_candidates: look at no more unlabelled volumes than that, drawn anew each round; None
            for all.
        annotated_share: of the draws of the second stage, in [0, 1).
        pseudo_weight: of a pseudo-labelled case in the loss, times its confidence.
        learning_rate_factor: times the optimiser's learning rate.
        dilation_voxels: uncertainty is averaged over the predicted foreground and so much around.

    Raises:
        ConfigError: if a number is out of range.
    """

    step_share: float = 0.25
    case_share: float = 0.5
    max_candidates: int | None = None
    annotated_share: float = 0.5
    pseudo_weight: float = 1.0
    learning_rate_factor: float = 0.1
    dilation_voxels: int = 2

    def __post_init__(self) -> None:
        limits: dict[str, dict[str, Any]] = {
            "step_share": {"above": 0, "below": 1},
            "case_share": {"above": 0, "at_most": 1},
            "annotated_share": {"at_least": 0, "below": 1},
            "pseudo_weight": {"above": 0},
            "learning_rate_factor": {"above": 0, "at_most": 1},
        }
        for name, limit in limits.items():
            check_number(f"semi_supervised.{name}", getattr(self, name), **limit)
        if self.max_candidates is not None:
            check_whole_number("semi_supervised.max_candidates", self.max_candidates, at_least=1)
        check_whole_number("semi_supervised.dilation_voxels", self.dilation_voxels, at_least=0)

    def steps(self, steps_per_round: int) -> int:
        """Steps of the second stage; at least one, and one is left to the first."""
        return min(max(1, round(self.step_share * steps_per_round)), steps_per_round - 1)


def no_pseudo_labels() -> None:
    """What ``semi_supervised=none`` makes."""


@dataclass(frozen=True)
class Judged:
    """A predicted case.

    Attributes:
        case_id: the case.
        confidence: in [0, 1]; None if no foreground was predicted.
    """

    case_id: str
    confidence: float | None


def confidence_of(statistics: VoxelStatistics, dilation_voxels: int) -> float | None:
    """1 - mean H[p̄] / log C over the predicted foreground and some voxels around, in [0, 1].

    None where no foreground is predicted: such a volume is sure of the background, which is most of
    it, and would teach that there is nothing to find.
    """
    if not (statistics.prediction > 0).any():
        return None
    mean_entropy = foreground_mean(entropy(statistics), statistics, dilation_voxels=dilation_voxels)
    return min(max(1 - mean_entropy / math.log(len(statistics.mean)), 0.0), 1.0)


def most_confident(judged: Sequence[Judged], share: float) -> dict[str, float]:
    """The confidence of the most confident share of the cases, at least one; ties by case id."""
    sure = [(j.confidence, j.case_id) for j in judged if j.confidence is not None]
    sure.sort(key=lambda pair: (-pair[0], pair[1]))
    n_chosen = max(1, round(share * len(judged)))
    return {case_id: confidence for confidence, case_id in sure[:n_chosen]}


class PseudoLabeller(pl.LightningModule):
    """Predicts volumes, keeps their labels on disk and judges them.

    Args:
        network: the round's.
        scoring: makes the passes.
        folder: where ``CASE.pt`` go.
        dilation_voxels: as for ``SemiSupervised``.
    """

    def __init__(
        self, network: nn.Module, scoring: Scoring, folder: Path, dilation_voxels: int
    ) -> None:
        super().__init__()
        self.network = network
        self.scoring = scoring
        self.folder = folder
        self.dilation_voxels = dilation_voxels

    def predict_step(self, batch: dict, batch_idx: int) -> list[Judged]:
        """Judge one volume; its label, class indices [1, D, H, W], goes to disk."""
        (case_id,) = batch["case_id"]
        statistics = self.scoring.statistics(self.network, batch["image"], case_id)
        confidence = confidence_of(statistics, self.dilation_voxels)
        if confidence is not None:
            dtype = class_dtype(len(statistics.mean))
            label = statistics.prediction.to(dtype).unsqueeze(0).cpu()
            write_tensors(self.folder / f"{case_id}.pt", label)
        return [Judged(case_id, confidence)]
