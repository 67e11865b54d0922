"""Streaming statistics of stochastic predictions: memory does not depend on the pass count."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from alseg.core.errors import ScoringError

MAX_PASSES = 2**15 - 1  # votes are counted in 16 bits
KEPT = frozenset({"variance", "expected_entropy", "votes"})


class VoxelStatistics:
    """Running per-voxel statistics over T stochastic passes of one volume.

    Notation: T passes, C classes, a volume of D x H x W voxels; p_t[c] is the softmax of pass t and
    H[p] = -sum_c p_c log p_c in nats. The mean and the sum of squared deviations are updated with
    Welford's recurrence (Technometrics 4, 1962), which does not cancel as E[p^2] - E[p]^2 does.

    Args:
        kept: of ``KEPT``, what is kept beside the mean; asking for another raises a ValueError. In
            a pass over a CT, entropy and votes take twice the time of mean and variance.

    Rejected: keeping the T probability volumes and reducing them at the end. A CT of 3 classes
    takes about 100 MB a pass.
    """

    def __init__(self, kept: Collection[str] = KEPT) -> None:
        self.n_passes = 0
        self._kept = frozenset(kept)
        self._hidden_label: Tensor | None = None
        self._mean: Tensor | None = None
        self._squared_deviations: Tensor | None = None
        self._entropy_sum: Tensor | None = None
        self._votes: Tensor | None = None

    def update(self, probabilities: Tensor) -> None:
        """Add one pass.

        Args:
            probabilities: softmax output, shape [C, D, H, W], summing to 1 over C; it is not kept.

        Raises:
            ValueError: if the shape differs from that of earlier passes.
            ScoringError: if there are more than ``MAX_PASSES``.
        """
        if self._mean is None:
            self._start(probabilities)
        mean = self._require(self._mean)
        if probabilities.shape != mean.shape:
            raise ValueError(
                f"pass has shape {tuple(probabilities.shape)}, earlier ones {tuple(mean.shape)}"
            )
        if self.n_passes == MAX_PASSES:
            raise ScoringError(f"a volume has more than {MAX_PASSES} passes, whose votes overflow")
        self.n_passes += 1
        if self._entropy_sum is not None:
            self._entropy_sum += entropy_of(probabilities)
        if self._votes is not None:
            winner = most_likely(probabilities, dim=0)  # [D, H, W]
            for index, votes in enumerate(self._votes):
                votes += winner == index
        weight = (self.n_passes - 1) / self.n_passes
        # class by class: what is computed in between takes the memory of one
        for index, probability in enumerate(probabilities):
            deviation = probability - mean[index]
            mean[index].add_(deviation, alpha=1 / self.n_passes)
            if self._squared_deviations is not None:
                self._squared_deviations[index].addcmul_(deviation, deviation, value=weight)

    def _start(self, probabilities: Tensor) -> None:
        self._mean = torch.zeros_like(probabilities)
        if "variance" in self._kept:
            self._squared_deviations = torch.zeros_like(probabilities)
        if "expected_entropy" in self._kept:
            self._entropy_sum = torch.zeros_like(probabilities[0])
        if "votes" in self._kept:
            # 16 bits: half of what another float map takes, and enough for MAX_PASSES
            self._votes = torch.zeros_like(probabilities, dtype=torch.int16)

    def attach_hidden_label(self, label: Tensor) -> None:
        """Let measures read the case's true class indices, shape [D, H, W].

        For strategies that are flagged with ``reads_labels`` and for no others.
        """
        self._hidden_label = label

    @property
    def mean(self) -> Tensor:
        """Mean probability p̄, shape [C, D, H, W]."""
        return self._require(self._mean)

    @property
    def variance(self) -> Tensor:
        """Population variance over passes of each class probability, shape [C, D, H, W]."""
        return self._require(self._squared_deviations, "variance") / self.n_passes

    @property
    def expected_entropy(self) -> Tensor:
        """Mean over passes of H[p_t], shape [D, H, W], in nats."""
        return self._require(self._entropy_sum, "expected_entropy") / self.n_passes

    @property
    def votes(self) -> Tensor:
        """How many passes found each class the most likely one, shape [C, D, H, W], int16."""
        return self._require(self._votes, "votes")

    @property
    def prediction(self) -> Tensor:
        """The most likely class of the mean prediction, argmax_c p̄[c], shape [D, H, W]."""
        return most_likely(self.mean, dim=0)

    @property
    def hidden_label(self) -> Tensor:
        """The true class indices [D, H, W], ``IGNORED`` where the data set has none.

        Raises:
            ValueError: if the strategy is not flagged with ``reads_labels``.
        """
        if self._hidden_label is None:
            raise ValueError("hidden labels are only for strategies with reads_labels=true")
        return self._hidden_label

    def _require(self, tensor: Tensor | None, name: str = "mean") -> Tensor:
        if self._mean is None:
            raise ValueError("no pass has been added yet")
        if tensor is None:
            raise ValueError(f"{name} is not kept, only {', '.join(sorted(self._kept)) or 'mean'}")
        return tensor


class WatchedStatistics(VoxelStatistics):
    """Statistics that note which of ``KEPT`` have been read."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_at: set[str] = set()

    def _require(self, tensor: Tensor | None, name: str = "mean") -> Tensor:
        self.looked_at.add(name)
        return super()._require(tensor, name)


class SampledStatistics(VoxelStatistics):
    """Statistics of passes over some of a volume's windows, each of which may stand for others.

    Deviations are taken from what a deterministic pass predicts, q, and not from the mean of the
    passes, so one pass gives an estimate and all of them have the same mean::

        variance          sum of weight (p_t - q)² / T
        expected entropy  H[q] - sum of weight KL(p_t || q) / T

    Where all windows are run with a weight of 1, these are Var_t p_t + (p̄ - q)² and
    H[q] - MI - KL(p̄ || q), with MI the mutual information: what VoxelStatistics has if the passes
    have the mean q, which is the weight scaling rule of dropout. The mean and the votes are q's.

    Args:
        still: q, [C, D, H, W]; it is kept, not copied.
        kept: as for ``VoxelStatistics``.
    """

    def __init__(self, still: Tensor, kept: Collection[str] = KEPT) -> None:
        super().__init__(kept)
        self._mean = still
        if "variance" in kept:
            self._squared_deviations = torch.zeros_like(still)
        if "expected_entropy" in kept:
            self._entropy_sum = torch.zeros_like(still[0])  # of what passes are surer by than q

    def add(
        self, box: tuple[slice, slice, slice], probabilities: Tensor, weight: float = 1.0
    ) -> None:
        """Add what one window changes in a pass.

        Args:
            box: where it lies in the volume.
            probabilities: of the box in this pass, [C, d, h, w]; what is there before is lost.
            weight: how many windows it stands for.
        """
        still = self.mean[(slice(None), *box)]
        if self._entropy_sum is not None:
            surer = entropy_of(probabilities).neg_()
            for p, q in zip(probabilities, still, strict=True):
                surer.addcmul_(p, q.clamp(min=torch.finfo(q.dtype).tiny).log_(), value=-1)
            self._entropy_sum[box].add_(surer, alpha=weight)
        if self._squared_deviations is not None:
            deviation = probabilities.sub_(still)
            self._squared_deviations[(slice(None), *box)].addcmul_(
                deviation, deviation, value=weight
            )

    def end_pass(self) -> None:
        """Count a pass, all of whose windows have been added."""
        self.n_passes += 1

    @property
    def expected_entropy(self) -> Tensor:
        """H[q] less what the passes are surer by, shape [D, H, W], in nats."""
        surer = self._require(self._entropy_sum, "expected_entropy") / self.n_passes
        return entropy_of(self.mean) - surer

    @property
    def votes(self) -> Tensor:
        """All passes for the most likely class of q, shape [C, D, H, W], int16."""
        votes = torch.zeros_like(self.mean, dtype=torch.int16)
        return votes.scatter_(0, self.prediction.unsqueeze(0), self.n_passes)


def single_pass(probabilities: Tensor) -> VoxelStatistics:
    """Statistics of one pass [C, D, H, W]."""
    statistics = SampledStatistics(probabilities)
    statistics.end_pass()
    return statistics


def class_dtype(n_classes: int) -> torch.dtype:
    """The type that stores class indices: one byte up to 256 classes."""
    return torch.uint8 if n_classes <= 256 else torch.int32


def most_likely(values: Tensor, dim: int) -> Tensor:
    """Index of the largest of the classes' values along an axis, which goes; the first of equals.

    ``max`` rather than ``argmax``: over an axis that is not the last, torch 2.13's argmax takes
    nine times as long on a CPU, which was a quarter of the time of scoring.
    """
    return values.max(dim=dim).indices


def entropy_of(probabilities: Tensor) -> Tensor:
    """Shannon entropy over the first axis: [C, ...] -> [...], in nats; 0 log 0 is 0.

    Class by class and by ``log``: on a CPU ``torch.special.entr`` over a CT takes twice as long.
    """
    total = torch.zeros_like(probabilities[0])
    smallest = torch.finfo(probabilities.dtype).tiny
    for probability in probabilities:
        total.addcmul_(probability, probability.clamp(min=smallest).log_(), value=-1)
    return total
