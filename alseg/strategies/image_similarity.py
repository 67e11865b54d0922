"""Diversity by the mutual information of images: how much a candidate resembles the labelled set.

V. Nath, D. Yang, B. A. Landman, D. Xu, H. R. Roth: "Diminishing uncertainty within the training
pool: active learning for medical image segmentation" (IEEE TMI 40, 2020; arXiv 2101.02323), the
section on acquisition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)
from torch import Tensor

from alseg.core.errors import ConfigError, check_choice, check_whole_number

OVER_LABELLED = ("mean", "max")


@dataclass(frozen=True)
class ImageSimilarity:
    """Normalised mutual information of the intensities of two images, voxel by voxel.

    MI(a, b) = sum_ij P(i, j) log(P(i, j) / (P(i) P(j))) over the joint histogram of both images,
    divided by the mean of their entropies: in [0, 1], 1 for images that determine each other.

    Open in the paper, and settings here: volumes differ in shape, so each is averaged onto a common
    grid first; the histogram has equal bins between two quantiles of the image's own intensities;
    several channels are compared one by one and averaged; the resemblance to a set is the mean over
    its images.

    Args:
        grid: voxels an axis of the common grid.
        bins: of the histogram, at most 256.
        quantiles: intensities beyond these fall into the outer bins.
        over_labelled: ``mean`` or ``max`` over the labelled images.

    Raises:
        ConfigError: if a number is out of range.
    """

    grid: Sequence[int] = (24, 24, 24)
    bins: int = 32
    quantiles: Sequence[float] = (0.01, 0.99)
    over_labelled: str = "mean"

    def __post_init__(self) -> None:
        if len(self.grid) != 3:
            raise ConfigError(f"similarity.grid is {list(self.grid)}; it must hold three numbers")
        for edge in self.grid:
            check_whole_number("each number of similarity.grid", edge, at_least=1)
        check_whole_number("similarity.bins", self.bins, at_least=2)
        low, high = self.quantiles
        if self.bins > 256 or not 0 <= low < high <= 1:
            raise ConfigError(
                f"similarity has bins={self.bins} and quantiles={list(self.quantiles)}; allowed "
                "are at most 256 bins, and two increasing quantiles in [0, 1]"
            )
        check_choice("similarity.over_labelled", self.over_labelled, OVER_LABELLED)

    @property
    def fingerprint(self) -> str:
        """Changes whenever ``describe`` gives something else."""
        return f"bins of {list(self.grid)} voxels, {self.bins}, {list(self.quantiles)}"

    def describe(self, image: Tensor) -> Tensor:
        """The bin of each voxel on the common grid: [channels, D, H, W] -> uint8 [channels, V]."""
        coarse = F.adaptive_avg_pool3d(image.float(), list(self.grid)).flatten(1)  # type: ignore[arg-type]
        # numpy: torch.quantile refuses more than 16 million values
        low, high = np.quantile(coarse.numpy(), self.quantiles, axis=1)[:, :, None]
        width = np.where(high > low, high - low, 1) / self.bins
        index = np.floor((coarse.numpy() - low) / width).clip(0, self.bins - 1)
        return torch.from_numpy(index.astype(np.uint8))

    def between(self, a: np.ndarray, b: np.ndarray) -> float:
        """NMI of two descriptions [channels, V], the mean over channels."""
        values = [normalized_mutual_information(x, y, self.bins) for x, y in zip(a, b, strict=True)]
        return float(np.mean(values))

    def to_labelled(self, values: np.ndarray) -> float:
        """NMI of a candidate with m labelled images, [m], to one number."""
        return float(values.mean() if self.over_labelled == "mean" else values.max())


def normalized_mutual_information(a: np.ndarray, b: np.ndarray, bins: int) -> float:
    """2 I(a; b) / (H(a) + H(b)) of two arrays of bin indices below ``bins``, in [0, 1].

    Two constant arrays give 1, as in scikit-learn, whose function allows any labels but takes ten
    times as long.
    """
    joint = np.bincount(a.astype(np.intp) * bins + b, minlength=bins * bins)
    p = joint.reshape(bins, bins) / joint.sum()
    p_a, p_b = p.sum(axis=1), p.sum(axis=0)
    entropies = _entropy(p_a) + _entropy(p_b)
    if entropies == 0:
        return 1.0
    information = max(entropies - _entropy(p), 0.0)
    return float(2 * information / entropies)


def _entropy(p: np.ndarray) -> float:
    positive = p[p > 0]
    return float(-(positive * np.log(positive)).sum())
