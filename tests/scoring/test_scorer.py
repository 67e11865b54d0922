"""What scoring hands to a strategy."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets import UNet
from torch import Tensor

from alseg.scoring.passes import Passes
from alseg.scoring.precision import Precision
from alseg.scoring.racing import Race
from alseg.scoring.scorer import Scoring
from alseg.scoring.sources import MCDropout, StoppingRule, UncertaintySource, streamed
from alseg.strategies import aggregations, measures
from alseg.strategies.selectors import noisy, ranked
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
    race = source.stopping_rule(strategy, 1, 12)
    assert isinstance(race, Race)
    raced = Scoring(strategy, source, inferer, 1, 1)
    fixed = Scoring(strategy, MCDropout(20), inferer, 1, 1)
    loud, quiet = (torch.randn(1, 1, 8, 8, 8) * scale for scale in (3.0, 0.01))
    first = raced.score_until_decided(race, network, loud, "loud")
    second = raced.score_until_decided(race, network, quiet, "quiet")
    all_passes = fixed.score(network, loud, "loud")  # several a batch, which round in another way
    assert first.score == pytest.approx(all_passes.score, rel=1e-5)
    assert replace(first, pass_scores=None, score=all_passes.score) == all_passes
    assert first.n_passes == 20
    assert second.n_passes is not None
    assert second.n_passes < 20
    exact = fixed.score(network, quiet, "quiet").score
    assert exact is not None
    assert second.score == pytest.approx(exact, rel=0.7)
    # what is drawn afterwards is all passes' statistics
    assert raced.statistics(network, quiet, "quiet").n_passes == 20


def test_passes_behind_a_gate_end_when_the_score_is_precise() -> None:
    torch.manual_seed(0)
    network = UNet(3, 1, 2, channels=(8, 8), strides=(2,), dropout=0.1, norm="batch").eval()
    strategy = Strategy("variance", ranked.top_k, measures.variance, aggregations.mean)
    inferer = SlidingWindowInferer(8, sw_batch_size=2)
    source = MCDropout(50, gate=0.2, passes="adaptive")
    rule = source.stopping_rule(strategy, 1, 12)
    assert isinstance(rule, Precision)
    scoring = Scoring(strategy, source, inferer, 1, 1)
    found = []
    for i in range(12):
        image = torch.randn(1, 1, 8, 8, 24) * 0.1 * 1.3**i
        found.append(scoring.score_until_decided(rule, network, image, f"{i}"))
    for score in found[5:]:
        assert score.pass_scores is not None
        assert score.score == score.pass_scores[-1]
        assert score.n_passes == len(score.pass_scores) < 50
        assert score.plain_passes is not None
        assert 1 < score.plain_passes <= 1 + score.n_passes
    # maps are made of all passes over all windows
    statistics = scoring.statistics(network, image, "11")
    exact = Scoring(strategy, MCDropout(50), inferer, 1, 1).statistics(network, image, "11")
    torch.testing.assert_close(statistics.variance, exact.variance)


def why_exact(source: MCDropout, strategy: Strategy, inferer: object = None, **more: Any) -> str:
    """What is said when the source falls back to exact scoring; nothing if it does not."""
    with LogCapture() as lines:
        fitted = source.fitted(strategy, inferer or SlidingWindowInferer(8), 2, **more)
    assert fitted == (source.exact if lines else source)
    return " ".join(lines)


class LogCapture(logging.Handler):
    """The lines of ``alseg.scoring.sources`` within a context."""

    def __enter__(self) -> list[str]:
        self.lines: list[str] = []
        self.log = logging.getLogger("alseg.scoring.sources")
        self.log.addHandler(self)
        self.log.setLevel(logging.INFO)
        return self.lines

    def __exit__(self, *error: object) -> None:
        self.log.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_a_source_is_exact_where_its_savings_do_not_suit_and_says_why() -> None:
    gated, raced = MCDropout(5, gate=0.3, passes="adaptive"), MCDropout(5, passes="adaptive")
    variance = Strategy("variance", ranked.top_k, measures.variance, aggregations.mean)
    power = replace(variance, name="power", selector=partial(noisy.power, beta=1.0))
    entropy = replace(variance, name="entropy", measure=measures.entropy)
    hottest = replace(variance, name="hottest", aggregation=aggregations.top_fraction_mean)
    pixels = replace(entropy, deterministic=True)
    assert not why_exact(gated, variance)
    assert not why_exact(gated, power)  # every score is as precise
    assert not why_exact(raced, hottest)
    assert not why_exact(gated, pixels)  # needs no passes
    assert not why_exact(MCDropout(5), power)
    assert "selector that needs every score exactly" in why_exact(raced, power)
    for strategy in (entropy, hottest):
        assert f"{strategy.name} is no mean or sum of variance" in why_exact(gated, strategy)
    buffered = SlidingWindowInferer(8, buffer_steps=2)
    assert "not a plain SlidingWindowInferer" in why_exact(gated, variance, buffered)
    assert "regions are scored by maps" in why_exact(gated, variance, of_regions=True)


class Noisy(UncertaintySource):
    """20 passes of plain noise, as loud as the image: nothing that this package knows of."""

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

    def stopping_rule(self, strategy: Strategy, query_size: int, n_candidates: int) -> StoppingRule:
        return Race(query_size, 20, 0.05)


def test_a_race_works_with_any_source_whose_passes_come_one_by_one(network: UNet) -> None:
    strategy = Strategy("variance", ranked.top_k, measures.variance, aggregations.mean)
    source = Noisy()
    race = source.stopping_rule(strategy, 1, 12)
    raced = Scoring(strategy, source, SimpleInferer(), 1, 1)
    loud, quiet = (torch.full((1, 1, 8, 8, 8), scale) for scale in (3.0, 0.1))
    first = raced.score_until_decided(race, network, loud, "loud")
    assert (first.n_passes, source.n_made) == (20, 20)
    second = raced.score_until_decided(race, network, quiet, "quiet")
    assert second.n_passes is not None
    assert second.n_passes < 20
    assert source.n_made == 20 + second.n_passes  # no pass is made that nobody asked for


def test_a_race_is_for_many_passes_and_adaptive_ones() -> None:
    plain = Strategy("variance", ranked.top_k, measures.variance, aggregations.mean)
    without = Strategy(
        "entropy", ranked.top_k, measures.entropy, aggregations.mean, deterministic=True
    )
    assert isinstance(MCDropout(5, passes="adaptive").stopping_rule(plain, 2, 9), Race)
    assert MCDropout(5).stopping_rule(plain, 2, 9) is None
    assert MCDropout(5, passes="adaptive").stopping_rule(without, 2, 9) is None
