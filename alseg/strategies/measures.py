"""Measures: from the statistics of a volume to a map of voxel uncertainty, shape [D, H, W].

Higher means more uncertain. Notation as in ``VoxelStatistics``: T passes, C classes, class 0 the
background; p_t is the softmax of pass t, p̄ its mean over passes, H the entropy in nats. All take
O(C D H W) operations and no pass over the network. A new measure is one function here and one YAML
under conf/strategy.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from alseg.strategies.statistics import VoxelStatistics, entropy_of


def variance(statistics: VoxelStatistics) -> Tensor:
    """Variance over passes, summed over foreground classes: sum_{c>=1} Var_t p_t[c].

    Population variance. Its mean over the volume is the score of the MONAI tutorial (which also
    lifts probabilities that underflowed to exactly 0 to 5e-4; that changes no score by more than
    2.5e-7). The background is left out: for two classes its variance equals the foreground's.
    Range [0, C/4].

    Bias: sees only disagreement between passes; what all of them are equally unsure of scores 0.
    """
    return statistics.variance[1:].sum(dim=0)


def entropy(statistics: VoxelStatistics) -> Tensor:
    """Predictive entropy H[p̄] of the mean prediction, in [0, log C] nats.

    Source: Shannon (1948); as an acquisition function, Gal, Islam, Ghahramani (ICML 2017), section
    4. It mixes what more labels can fix with what is ambiguous in the image.

    Bias: organ surfaces, whose voxels are ambiguous however many labels there are.
    """
    return entropy_of(statistics.mean)


def expected_entropy(statistics: VoxelStatistics) -> Tensor:
    """Mean entropy of the passes, E_t H[p_t], in [0, log C] nats: the aleatoric part of H[p̄].

    Source: Depeweg et al. (ICML 2018), section 3; Gal et al. (ICML 2017), second term of BALD.

    Bias: what is ambiguous in the image itself (noise, partial volume), which labels cannot fix.
    It stands here as the opposite of ``mutual_information``, to be compared with.
    """
    return statistics.expected_entropy


def mutual_information(statistics: VoxelStatistics) -> Tensor:
    """BALD: mutual information of prediction and weights, H[p̄] - E_t H[p_t], in [0, log C] nats.

    Source: Houlsby et al. (2011), equation 2; with MC dropout, Gal et al. (ICML 2017), section 4.

    Bias: voxels where the passes contradict each other, each sure of itself; blind to ambiguity
    that all passes share. Needs T >= 2: a single pass scores 0 everywhere.
    """
    # Not negative by Jensen's inequality; rounding may leave -1e-8, which would sort below 0.
    return (entropy_of(statistics.mean) - statistics.expected_entropy).clamp(min=0)


def margin(statistics: VoxelStatistics) -> Tensor:
    """One minus the gap between the two most likely classes, 1 - (p̄_(1) - p̄_(2)), in [0, 1].

    Source: Scheffer, Decomain, Wrobel (IDA 2001).

    Bias: the seam between two classes, whatever the others do.
    """
    best = statistics.mean.topk(2, dim=0).values  # [2, D, H, W]
    return 1 - (best[0] - best[1])


def least_confidence(statistics: VoxelStatistics) -> Tensor:
    """One minus the largest class probability, 1 - max_c p̄[c], in [0, 1 - 1/C].

    Source: Lewis and Gale (SIGIR 1994). For two classes it is half of ``margin``.
    """
    return 1 - statistics.mean.amax(dim=0)


def variation_ratio(statistics: VoxelStatistics) -> Tensor:
    """Share of the passes that do not vote for the commonest class, 1 - max_c votes[c] / T.

    In [0, 1 - 1/C], in steps of 1/T. Source: Freeman (1965); with MC dropout, Gal (PhD thesis,
    2016), section 3.3.1.

    Bias: blind to how sure a vote is; with few passes most voxels are tied at 0.
    """
    return 1 - statistics.votes.amax(dim=0) / statistics.n_passes


def prediction_error(statistics: VoxelStatistics) -> Tensor:
    """1 where the prediction differs from the hidden label, else 0. Needs ``reads_labels``.

    0 where the data set's own label is ignored.
    """
    label = statistics.hidden_label
    return ((statistics.prediction != label) & (label >= 0)).float()


# Class scores: from the statistics to one number a foreground class, shape [C - 1].


def class_entropy(statistics: VoxelStatistics) -> Tensor:
    """Uncertainty of each foreground class, the mean over voxels of p̄[c] H[p̄], shape [C - 1].

    A class that is nowhere likely gets a score near 0, but the ranking within the class stays
    meaningful, which is what ``class_stratified`` uses.

    Source: ClaSP PE, class-stratified predictive entropy, the follow-up of nnActive (Lüth et al.).
    """
    weighted = statistics.mean[1:].double() * entropy_of(statistics.mean)  # [C-1, D, H, W]
    return weighted.flatten(start_dim=1).mean(dim=1)


def class_entropy_maps(statistics: VoxelStatistics) -> Iterator[Tensor]:
    """The maps p̄[c] H[p̄] whose means ``class_entropy`` gives, [D, H, W] each; one at a time."""
    mean = statistics.mean
    total = entropy_of(mean)
    for probability in mean[1:]:
        yield probability * total


def hidden_class_voxels(statistics: VoxelStatistics) -> Tensor:
    """Voxels of each foreground class in the hidden label, [C - 1]. Needs ``reads_labels``."""
    n_classes, label = len(statistics.mean), statistics.hidden_label
    counts = label[label >= 0].long().bincount(minlength=n_classes)
    return counts[1:].double()
