"""Measures: from the statistics of a volume to a map of voxel uncertainty, shape [D, H, W].

Higher means more uncertain. Notation as in ``VoxelStatistics``: p̄ is the mean probability over
passes, H the entropy in nats, class 0 the background. A new measure is one function here and one
YAML under conf/strategy.
"""

from __future__ import annotations

from torch import Tensor

from alseg.strategies.statistics import VoxelStatistics, entropy_of


def variance(statistics: VoxelStatistics) -> Tensor:
    """Variance over passes, summed over foreground classes: sum_{c>=1} Var_t p_t[c].

    Population variance. Its mean over the volume is the score of the MONAI tutorial (which also
    lifts probabilities that underflowed to exactly 0 to 5e-4; that changes no score by more than
    2.5e-7). The background is left out: for two classes its variance equals the foreground's.
    Range [0, C/4].
    """
    return statistics.variance[1:].sum(dim=0)


def entropy(statistics: VoxelStatistics) -> Tensor:
    """Predictive entropy H[p̄] of the mean prediction, in [0, log C] nats.

    Source: Shannon (1948); as an acquisition function, Gal, Islam, Ghahramani (ICML 2017), section
    4. It mixes what more labels can mend with what is ambiguous in the image.
    """
    return entropy_of(statistics.mean)
