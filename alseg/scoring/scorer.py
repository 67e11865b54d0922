"""From a network and a volume to the volume's score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
from monai.inferers import Inferer
from torch import Tensor, nn

from alseg.core.seeding import seed_for
from alseg.networks.committee import reported_network
from alseg.networks.dropout import MaskSeed
from alseg.networks.features import BottleneckFeatures
from alseg.scoring.passes import Passes
from alseg.scoring.region_features import region_features
from alseg.scoring.sources import StoppingRule, UncertaintySource, plain_pass
from alseg.strategies.places import Places
from alseg.strategies.regions import annotated_regions, score_regions
from alseg.strategies.statistics import VoxelStatistics, single_pass
from alseg.strategies.strategy import CaseScore, Strategy


@dataclass(frozen=True)
class Scoring:
    """How the pool is scored in a round.

    Attributes:
        strategy: turns statistics into a score.
        source: makes the passes.
        inferer: runs a network over the windows of a volume while scoring.
        base_seed: the run's seed.
        round_number: the round, which the masks depend on.
        members: the networks of an ensemble after the first one, which the module holds.
        stopping: decides how many passes a volume takes; None for all of them.
        places: where the regions of a case may lie, and how many of them are wanted; None where
            volumes are scored as a whole.
    """

    strategy: Strategy
    source: UncertaintySource
    inferer: Inferer
    base_seed: int
    round_number: int
    members: tuple[nn.Module, ...] = ()
    stopping: StoppingRule | None = None
    places: Callable[[str], Places] | None = None

    def statistics(
        self,
        network: nn.Module,
        image: Tensor,
        case_id: str,
        hidden_label: Tensor | None = None,
    ) -> VoxelStatistics:
        """Statistics of all of the source's passes, or of a single plain one, over a volume.

        For pictures and labels: nothing is saved, as a sample of windows makes a spotted map.

        Args:
            network: the round's network, in eval mode.
            image: shape [1, channels, D, H, W].
            case_id: the case, which random masks depend on.
            hidden_label: class indices [D, H, W], for strategies that read labels.
        """
        exact = replace(self, source=self.source.exact)
        passes = exact._passes(network, image, case_id, None)
        *_, statistics = self._labelled(passes, hidden_label)
        return statistics

    def score(
        self,
        network: nn.Module,
        image: Tensor,
        case_id: str,
        hidden_label: Tensor | None = None,
        labelled: bool = False,
    ) -> CaseScore:
        """The score of one volume, with features where the strategy asks for them.

        As ``statistics``; ``labelled`` says that the case is a labelled one, of which only the
        features are kept. An ensemble's features are those of its first member.
        """
        features = None
        if self.strategy.features is not None:
            features = BottleneckFeatures(foreground=self.strategy.features == "foreground")
        passes = self._passes(network, image, case_id, features)
        *_, statistics = self._labelled(passes, hidden_label)
        vector = None if features is None else features.vector()
        score = self.strategy.score(case_id, statistics, vector, labelled)
        return replace(score, plain_passes=passes.cost(statistics.n_passes))

    def regions(
        self,
        network: nn.Module,
        image: Tensor,
        case_id: str,
        hidden_label: Tensor | None = None,
        labelled: bool = False,
    ) -> list[CaseScore]:
        """The best regions of one volume, and the annotated ones where features are compared.

        As ``score``; of a ``labelled`` case there are the annotated ones only.
        """
        assert self.places is not None
        places, strategy, features_of = self.places(case_id), self.strategy, None
        found: list[CaseScore] = []
        if strategy.features is not None:
            features_of = region_features(
                network, image, self.inferer, foreground=strategy.features == "foreground"
            )
            found += annotated_regions(case_id, places, features_of)
        if not labelled:
            passes = self._passes(network, image, case_id, None)
            *_, statistics = self._labelled(passes, hidden_label)
            cost = passes.cost(statistics.n_passes)
            rng = np.random.default_rng(
                seed_for(self.base_seed, self.round_number, "regions", case_id)
            )
            scores = score_regions(strategy, case_id, statistics, places, rng, features_of)
            found += [replace(score, plain_passes=cost) for score in scores]
        return found

    def score_until_decided(
        self,
        stopping: StoppingRule,
        network: nn.Module,
        image: Tensor,
        case_id: str,
        hidden_label: Tensor | None = None,
    ) -> CaseScore:
        """The score of one volume after as many passes as a rule asks for."""
        passes = self._passes(network, image, case_id, None)
        expected = self._expected(passes)
        pass_scores: tuple[float, ...] = ()
        for statistics in self._labelled(passes, hidden_label):
            score = self.strategy.score(case_id, statistics).score
            assert score is not None  # stopping rules are for strategies with a measure
            pass_scores += (score,)
            so_far = CaseScore(
                case_id,
                score,
                n_passes=len(pass_scores),
                pass_scores=pass_scores,
                plain_passes=passes.cost(len(pass_scores)),
                expected=expected,
            )
            if len(pass_scores) % passes.together == 0 and stopping.is_decided(so_far):
                break
        found = replace(so_far, score=stopping.result(so_far))
        stopping.observe(found)
        return found

    def _expected(self, passes: Passes) -> float | None:
        """What a deterministic pass expects of the score."""
        if passes.expected is None:
            return None
        assert self.strategy.aggregation is not None
        # a mean or a sum, which look at no statistics: others are not sampled
        return float(self.strategy.aggregation(passes.expected, VoxelStatistics()))

    def _passes(
        self,
        network: nn.Module,
        image: Tensor,
        case_id: str,
        features: BottleneckFeatures | None,
    ) -> Passes:
        """The source's passes, or a single plain one."""
        if self.strategy.deterministic:
            with features.watching(reported_network(network)) if features else nullcontext():
                plain = plain_pass(network, image, self.inferer)
            return Passes(iter((single_pass(plain),)))
        networks = (network, *self.members)
        mask_seed = mask_seed_of(self.base_seed, self.round_number, case_id)
        read = self.strategy.statistics_read
        return self.source.stream(networks, image, self.inferer, mask_seed, features, read)

    def _labelled(
        self, passes: Iterable[VoxelStatistics], hidden_label: Tensor | None
    ) -> Iterator[VoxelStatistics]:
        """The same statistics, with the hidden label for strategies that read it."""
        for statistics in passes:
            if hidden_label is not None and self.strategy.reads_labels:
                statistics.attach_hidden_label(hidden_label)
            yield statistics


def mask_seed_of(base_seed: int, round_number: int, case_id: str) -> MaskSeed:
    """The seeds of the random masks over a volume, by pass, window and layer."""

    def mask_seed(pass_index: int, window: int, layer: int) -> int:
        purpose = f"mc_dropout/{pass_index}/{window}/{layer}"
        return seed_for(base_seed, round_number, purpose, case_id)

    return mask_seed
