"""Uncertainty sources: where the several predictions of one volume come from.

A source turns the networks of a round and a volume into ``VoxelStatistics``; the strategies never
learn which one it was. ``uncertainty=`` chooses; a new one is a class here and one YAML under
conf/uncertainty.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, combinations
from typing import Protocol

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from alseg.core.errors import ConfigError, check_choice, check_number, check_whole_number
from alseg.networks.committee import reported_network
from alseg.networks.dropout import MaskSeed, check_dropout
from alseg.networks.features import BottleneckFeatures
from alseg.networks.low_precision import checked_forward
from alseg.scoring.passes import Passes, dropout_passes
from alseg.scoring.precision import Precision, share_of_pool
from alseg.scoring.racing import Race, n_top_needed
from alseg.scoring.sampled_passes import sampled_passes
from alseg.scoring.windows import is_plain
from alseg.strategies import aggregations, measures
from alseg.strategies.statistics import KEPT, MAX_PASSES, VoxelStatistics
from alseg.strategies.strategy import CaseScore, Strategy, unwrapped

log = logging.getLogger(__name__)

PASSES = ("fixed", "adaptive")


class StoppingRule(Protocol):
    """Says how many passes a volume takes, one volume after another."""

    def is_decided(self, so_far: CaseScore) -> bool:
        """Whether a volume with these passes, one at least, needs no more of them."""

    def result(self, so_far: CaseScore) -> float:
        """The score of such a volume."""

    def observe(self, scored: CaseScore) -> None:
        """Take in what a volume has shown, such as one from before an interruption."""


class UncertaintySource(ABC):
    """A stream of passes over a volume, which a strategy's statistics are taken from.

    Attributes:
        n_members: how many networks a round trains, one after another.
        loss: what they are trained on; None for the recipe's loss.
    """

    n_members: int = 1
    loss: Callable[[Tensor, Tensor], Tensor] | None = None

    def check(self, network: nn.Module) -> None:  # noqa: B027  (most sources take any network)
        """Raise a ConfigError if the network cannot make the passes."""

    def untrained(self, make_network: Callable[[int], nn.Module]) -> nn.Module:
        """What a round trains: one network, or several that are trained jointly.

        Args:
            make_network: makes the network of that number, from 1.
        """
        return make_network(1)

    @abstractmethod
    def stream(
        self,
        networks: Sequence[nn.Module],
        image: Tensor,
        inferer: Inferer,
        mask_seed: MaskSeed,
        features: BottleneckFeatures | None = None,
        kept: Collection[str] = KEPT,
    ) -> Passes:
        """The passes over one volume, each made when it is asked for.

        Args:
            networks: ``n_members`` networks in eval mode; they are left bit-identical.
            image: one preprocessed volume, shape [1, channels, D, H, W].
            inferer: runs a callable over windows.
            mask_seed: gives the seed of each random mask.
            features: shown the passes of the network that the round reports.
            kept: what the statistics keep, see ``VoxelStatistics``.
        """

    def statistics(
        self, networks: Sequence[nn.Module], image: Tensor, inferer: Inferer, mask_seed: MaskSeed
    ) -> VoxelStatistics:
        """The statistics after all passes over all windows; arguments as for ``stream``."""
        *_, statistics = self.exact.stream(networks, image, inferer, mask_seed)
        return statistics

    @property
    def exact(self) -> UncertaintySource:
        """This source with all of its passes over all windows."""
        return self

    def stopping_rule(
        self, strategy: Strategy, query_size: int, n_candidates: int
    ) -> StoppingRule | None:
        """What ends a volume's passes before all are made; None where nothing does."""
        return None

    def fitted(
        self, strategy: Strategy, inferer: Inferer, query_size: int, *, of_regions: bool = False
    ) -> UncertaintySource:
        """This source, exact where what it saves does not suit the strategy; it says so."""
        return self


@dataclass(frozen=True)
class MCDropout(UncertaintySource):
    """T passes of one network with random dropout masks (Gal and Ghahramani, ICML 2016).

    Args:
        n_passes: T, at least 1.
        gate: the share of a volume's expected variance that lies in windows of which a pass runs
            only a random sample, in [0, 1), see ``gate.chances``; None runs all windows.
        passes: ``fixed``, T passes over every volume, or ``adaptive``, at most T: with a gate as
            many as the query needs (``Precision``), without one fewer for volumes that are surely
            not queried (``Race``).
        error_rate: of a race, the probability in (0, 1) that a query is not the one that fixed
            passes would have led to.

    Raises:
        ConfigError: if a setting is out of range.
    """

    n_passes: int
    gate: float | None = None
    passes: str = "fixed"
    error_rate: float = 0.05

    def __post_init__(self) -> None:
        check_whole_number("uncertainty.n_passes", self.n_passes, at_least=1)
        if self.n_passes > MAX_PASSES:
            raise ConfigError(f"uncertainty.n_passes is {self.n_passes}; at most {MAX_PASSES} fit")
        check_number("uncertainty.gate", self.gate, at_least=0, below=1, or_null=True)
        check_choice("uncertainty.passes", self.passes, PASSES)
        check_number("uncertainty.error_rate", self.error_rate, above=0, below=1)

    def check(self, network: nn.Module) -> None:
        """The network needs active dropout."""
        check_dropout(network)

    def stream(
        self,
        networks: Sequence[nn.Module],
        image: Tensor,
        inferer: Inferer,
        mask_seed: MaskSeed,
        features: BottleneckFeatures | None = None,
        kept: Collection[str] = KEPT,
    ) -> Passes:
        """T passes of the one network, see ``dropout_passes`` and ``sampled_passes``."""
        (network,) = networks
        if self.gate is not None:
            assert features is None  # ``fitted`` has seen to it
            return sampled_passes(
                network, image, inferer, self.n_passes, mask_seed, self.gate, kept
            )
        return dropout_passes(
            network,
            image,
            inferer,
            self.n_passes,
            mask_seed,
            features=features,
            kept=kept,
            ahead=self.passes == "fixed",
        )

    @property
    def exact(self) -> MCDropout:
        """T passes over all windows."""
        return replace(self, gate=None, passes="fixed")

    def stopping_rule(
        self, strategy: Strategy, query_size: int, n_candidates: int
    ) -> StoppingRule | None:
        """Precision behind a gate, a race without one; None for fixed passes."""
        if self.passes == "fixed" or not strategy.needs_passes:
            return None
        n_top = n_top_needed(strategy.selector, query_size)
        if self.gate is not None:
            return Precision(self.n_passes, share_of_pool(n_top, n_candidates))
        assert n_top is not None  # ``fitted`` has seen to it
        return Race(n_top, self.n_passes, self.error_rate)

    def fitted(
        self, strategy: Strategy, inferer: Inferer, query_size: int, *, of_regions: bool = False
    ) -> MCDropout:
        """This source, exact where what it saves does not suit the strategy; it says so."""
        if not strategy.needs_passes or self == self.exact:
            return self
        reason = "regions are scored by maps" if of_regions else None
        if reason is None and self.gate is not None:
            reason = why_not_sampled(strategy, inferer)
        elif reason is None:
            reason = why_no_race(strategy, query_size)
        if reason is None:
            return self
        what = "uncertainty.gate" if self.gate is not None else "uncertainty.passes=adaptive"
        log.info(f"{what} saves nothing here, all passes run over all windows: {reason}")
        return self.exact


@dataclass(frozen=True)
class Ensemble(UncertaintySource):
    """One plain pass of each of M networks, trained from seeds of their own.

    The first member is the network that the round reports; the others only score. A round's
    training takes M times as long, scoring M passes.

    Source: Lakshminarayanan, Pritzel, Blundell, "Simple and scalable predictive uncertainty
    estimation using deep ensembles" (NeurIPS 2017), without adversarial training.

    Args:
        n_members: M, at least 1.

    Raises:
        ConfigError: if M is not a whole number of at least 1.
    """

    n_members: int

    def __post_init__(self) -> None:
        check_whole_number("uncertainty.n_members", self.n_members, at_least=1)

    def stream(
        self,
        networks: Sequence[nn.Module],
        image: Tensor,
        inferer: Inferer,
        mask_seed: MaskSeed,
        features: BottleneckFeatures | None = None,
        kept: Collection[str] = KEPT,
    ) -> Passes:
        """One pass of each member."""
        # Lightning moves its own module to the device, not the other members.
        predictions = (plain_pass(n.to(image.device), image, inferer) for n in networks)
        return streamed(predictions, networks[0], features, kept)


@dataclass(frozen=True)
class FlipAugmentation(UncertaintySource):
    """Test-time augmentation: one plain pass of each combination of flips, 2^len(axes) passes.

    The softmax is flipped back before the statistics take it in. What it measures is how much the
    prediction depends on a side: choose axes along which anatomy may be mirrored, or which training
    flips as well.

    Source: Wang et al., "Aleatoric uncertainty estimation with test-time augmentation"
    (Neurocomputing 2019).

    Args:
        axes: axes of the preprocessed volume, of 0, 1 and 2.

    Raises:
        ConfigError: if an axis is given twice or is none of the three.
    """

    axes: Sequence[int]

    def __post_init__(self) -> None:
        if not set(self.axes) <= {0, 1, 2} or len(set(self.axes)) != len(self.axes):
            raise ConfigError(
                f"uncertainty.axes is {list(self.axes)}; it must hold distinct axes of 0, 1, 2"
            )

    def stream(
        self,
        networks: Sequence[nn.Module],
        image: Tensor,
        inferer: Inferer,
        mask_seed: MaskSeed,
        features: BottleneckFeatures | None = None,
        kept: Collection[str] = KEPT,
    ) -> Passes:
        """One pass of each combination of flips, the unflipped volume first."""
        (network,) = networks
        subsets = chain.from_iterable(
            combinations(sorted(self.axes), size) for size in range(len(self.axes) + 1)
        )
        # from the end: D, H, W are the last three
        flips = ([axis - 3 for axis in subset] for subset in subsets)
        predictions = (plain_pass(network, image.flip(flip), inferer).flip(flip) for flip in flips)
        return streamed(predictions, network, features, kept)


def why_not_sampled(strategy: Strategy, inferer: Inferer) -> str | None:
    """Why a sample of windows cannot stand for all of them; None where it can."""
    sums = (aggregations.mean, aggregations.sum)
    known = (measures.variance, measures.mutual_information)
    if strategy.features or strategy.class_scores:
        return f"strategy {strategy.name} compares volumes by their features or class scores"
    assert strategy.measure is not None
    assert strategy.aggregation is not None
    if unwrapped(strategy.measure) not in known or unwrapped(strategy.aggregation) not in sums:
        return f"strategy {strategy.name} is no mean or sum of variance or mutual information"
    if not is_plain(inferer):
        return "data.scoring_inferer is not a plain SlidingWindowInferer"
    return None


def why_no_race(strategy: Strategy, query_size: int) -> str | None:
    """Why volumes cannot race for the query; None where they can."""
    if strategy.features or strategy.class_scores:
        return f"strategy {strategy.name} compares volumes by their features or class scores"
    if n_top_needed(strategy.selector, query_size) is None:
        return f"strategy {strategy.name} has a selector that needs every score exactly"
    return None


def streamed(
    predictions: Iterable[Tensor],
    network: nn.Module,
    features: BottleneckFeatures | None,
    kept: Collection[str] = KEPT,
) -> Passes:
    """Passes whose predictions come one by one.

    Args:
        predictions: softmax of each pass, [C, D, H, W], made when it is asked for.
        network: the one whose features are taken, or a committee that holds it.
        features: shown its passes.
        kept: what the statistics keep.
    """

    def after_each() -> Iterator[VoxelStatistics]:
        statistics = VoxelStatistics(kept)
        with features.watching(reported_network(network)) if features else nullcontext():
            for probabilities in predictions:
                statistics.update(probabilities)
                yield statistics

    return Passes(after_each())


@torch.no_grad()
def plain_pass(network: nn.Module, image: Tensor, inferer: Inferer) -> Tensor:
    """Softmax of one deterministic pass: [1, channels, D, H, W] -> [C, D, H, W], float32."""
    logits = inferer(image, partial(checked_forward, network))
    return torch.softmax(logits[0].float(), dim=0)
