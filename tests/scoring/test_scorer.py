"""What scoring hands to a strategy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets import UNet
from torch import Tensor

from alseg.scoring.passes import Passes
from alseg.scoring.racing import Heats, Race
from alseg.scoring.scorer import Scoring
from alseg.scoring.sources import MCDropout, UncertaintySource, race_for, streamed
from alseg.strategies import aggregations, measures
from alseg.strategies.selectors import ranked
from alseg.strategies.strategy import Strategy

LABEL = torch.zeros(8, 8, 8, dtype=torch.uint8)


def scoring(*, reads_labels: bool, deterministic: bool = True) -> Scoring:
    strategy = Strategy(
        "error",
        ranked.top_k,
        measures.prediction_error,
        aggregations.hidden_dice_error,
        deterministic=deterministic,
        reads_labels=reads_labels,
    )
    return Scoring(strategy, MCDropout(3), SimpleInferer(), base_seed=1, round_number=1)


@pytest.fixture
def network() -> UNet:
    torch.manual_seed(0)
    return UNet(3, 1, 2, channels=(4, 8), strides=(2,), dropout=0.3).eval()


def test_a_hidden_label_reaches_flagged_strategies_alone(network: UNet) -> None:
    image = torch.randn(1, 1, 8, 8, 8)
    case = (network, image, "case_1", LABEL)
    score = scoring(reads_labels=True).score(*case).score
    assert score is not None
    assert 0 <= score <= 1
    with pytest.raises(ValueError, match="reads_labels"):
        scoring(reads_labels=False).score(*case)


def test_deterministic_strategies_make_one_pass_without_dropout(network: UNet) -> None:
    image = torch.randn(1, 1, 8, 8, 8)
    plain = scoring(reads_labels=False)
    statistics = plain.statistics(network, image, "case_1")
    assert statistics.n_passes == 1
    with torch.no_grad():
        torch.testing.assert_close(statistics.mean, torch.softmax(network(image)[0], dim=0))
    many = scoring(reads_labels=False, deterministic=False)
    assert many.statistics(network, image, "case_1").n_passes == 3


def test_a_race_ends_the_passes_of_a_volume_that_is_surely_out() -> None:
    torch.manual_seed(0)  # batch norm: instance norm would make the two volumes alike
    network = UNet(3, 1, 2, channels=(8, 8), strides=(2,), dropout=0.1, norm="batch").eval()
    strategy = Strategy("variance", ranked.top_k, measures.variance, aggregations.mean)
    source = MCDropout(20, passes="adaptive")
    inferer = SlidingWindowInferer(8, sw_batch_size=1)
    race = race_for(source, strategy, 1, n_volumes=2)
    assert race is not None
    raced, heats = Scoring(strategy, source, inferer, 1, 1), Heats(race)
    fixed = Scoring(strategy, MCDropout(20), inferer, 1, 1)
    loud, quiet = (torch.randn(1, 1, 8, 8, 8) * scale for scale in (3.0, 0.01))
    # without a gate each is a heat of its own
    (first,) = raced.race(heats, network, loud, "loud", is_last=False)
    (second,) = raced.race(heats, network, quiet, "quiet", is_last=False)
    assert replace(first, pass_scores=None) == fixed.score(network, loud, "loud")
    assert first.n_passes == 20
    assert second.n_passes is not None
    assert second.n_passes < 20
    exact = fixed.score(network, quiet, "quiet").score
    assert exact is not None
    assert second.score == pytest.approx(exact, rel=0.7)
    # what is drawn afterwards is all passes' statistics
    assert raced.statistics(network, quiet, "quiet").n_passes == 20


def test_volumes_behind_a_gate_race_together() -> None:
    torch.manual_seed(0)
    network = UNet(3, 1, 2, channels=(8, 8), strides=(2,), dropout=0.1, norm="batch").eval()
    strategy = Strategy("variance", ranked.top_k, measures.variance, aggregations.mean)
    inferer = SlidingWindowInferer(8, sw_batch_size=2)
    images = {f"{i}": torch.randn(1, 1, 8, 8, 16) * (3.0 if i == 3 else 0.01) for i in range(8)}
    source = MCDropout(10, gate=0.1, passes="adaptive")
    race = race_for(source, strategy, 1, n_volumes=8)
    assert race is not None
    raced, heats = Scoring(strategy, source, inferer, 1, 1), Heats(race)
    decided = []
    for case_id, image in images.items():
        assert not decided
        is_last = case_id == "7"
        decided += raced.race(heats, network, image, case_id, is_last=is_last)
    assert sorted(score.case_id for score in decided) == list(images)
    # The loud one is found though its hint is the lowest: the network is sure of it, and unstable.
    fixed = Scoring(strategy, MCDropout(10, gate=0.1), inferer, 1, 1)
    loud = max(decided, key=lambda score: score.score or 0.0)
    assert loud.hint == min(score.hint or 0.0 for score in decided)
    assert replace(loud, pass_scores=None, hint=None) == fixed.score(network, images["3"], "3")
    assert any(score.n_passes != 10 for score in decided)


def test_strategies_that_read_labels_and_votes_race_with_a_hint(network: UNet) -> None:
    inferer = SlidingWindowInferer(8)
    image = torch.randn(1, 1, 8, 8, 8)
    reads = scoring(reads_labels=True, deterministic=False).strategy
    votes = Strategy("disagreement", ranked.top_k, measures.variance, lambda _, s: 0.0)
    for strategy in (reads, votes):
        source = MCDropout(3, gate=0.1, passes="adaptive")
        race = race_for(source, strategy, 1, n_volumes=1)
        assert race is not None
        scored = Scoring(strategy, source, inferer, 1, 1)
        (raced,) = scored.race(Heats(race), network, image, "case_1", LABEL, is_last=True)
        assert raced.hint is not None
        assert raced.hint > 0


class Noisy(UncertaintySource):
    """20 passes of plain noise, as loud as the image: nothing that this package knows of."""

    passes = "adaptive"

    def __init__(self) -> None:
        self.n_made = 0

    def stream(self, networks: Any, image: Tensor, *args: Any, **more: Any) -> Passes:
        generator = torch.Generator().manual_seed(0)

        def predictions() -> Iterator[Tensor]:
            for _ in range(20):
                self.n_made += 1
                noise = torch.randn(2, 8, 8, 8, generator=generator)
                yield torch.softmax(noise * image.abs().mean(), dim=0)

        return streamed(predictions(), networks[0], None)

    def race(self, n_top: int, n_volumes: int) -> Race:
        return Race(n_top, 20, 0.05, n_volumes)


def test_a_race_works_with_any_source_whose_passes_come_one_by_one(network: UNet) -> None:
    strategy = Strategy("variance", ranked.top_k, measures.variance, aggregations.mean)
    source = Noisy()
    race = race_for(source, strategy, 1, n_volumes=2)
    assert race is not None
    raced, heats = Scoring(strategy, source, SimpleInferer(), 1, 1), Heats(race)
    loud, quiet = (torch.full((1, 1, 8, 8, 8), scale) for scale in (3.0, 0.1))
    (first,) = raced.race(heats, network, loud, "loud", is_last=False)
    assert (first.n_passes, source.n_made) == (20, 20)
    (second,) = raced.race(heats, network, quiet, "quiet", is_last=True)
    assert second.n_passes is not None
    assert second.n_passes < 20
    assert source.n_made == 20 + second.n_passes  # no pass is made that nobody asked for


def test_a_race_is_for_many_passes_and_adaptive_ones() -> None:
    plain = Strategy("variance", ranked.top_k, measures.variance, aggregations.mean)
    without = Strategy(
        "entropy", ranked.top_k, measures.entropy, aggregations.mean, deterministic=True
    )
    assert isinstance(race_for(MCDropout(5, passes="adaptive"), plain, 2, 9), Race)
    assert race_for(MCDropout(5), plain, 2, 9) is None
    assert race_for(MCDropout(5, passes="adaptive"), without, 2, 9) is None
