"""Strategies are composed of parts, which can be exchanged one by one."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from alseg.config.checks import check_scores
from alseg.config.composition import PARTS, composed, conf_folder, instantiate
from alseg.core.errors import ConfigError
from alseg.run.state import RunState
from alseg.strategies.strategy import Strategy
from tests.smoke_runs import run_smoke

CONF = Path(conf_folder(), "strategy")
STRATEGIES = sorted(path.stem for path in CONF.glob("*.yaml"))
CHOICES = {kind: sorted(path.stem for path in (CONF / kind).glob("*.yaml")) for kind in PARTS}
EACH = [(kind, choice) for kind in PARTS for choice in CHOICES[kind]]
LOOK_AT_NO_SCORE = {"random", "class_balanced_random", "k_center", "random_per_group", "typiclust"}
READ_LABELS = {"prediction_error", "hidden_dice_error", "class_balanced_random"}


@cache
def settings(*overrides: str) -> dict[str, Any]:
    """A strategy as Hydra composes it."""
    content = OmegaConf.to_container(composed(overrides).strategy, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def unnamed(*overrides: str) -> dict[str, Any]:
    return {key: value for key, value in settings(*overrides).items() if key != "name"}


@cache
def brought(kind: str, choice: str) -> dict[str, Any]:
    """What a part brings to a strategy, instantiated: itself, and what it needs."""
    others = {"_target_", "name", *PARTS} - {kind}
    content = settings("strategy=entropy", f"strategy/{kind}={choice}")
    node = {key: value for key, value in content.items() if key not in others}
    return dict(instantiate(OmegaConf.create(node)))


def test_the_parts_are_all_there() -> None:
    assert {kind: len(choices) for kind, choices in CHOICES.items()} == {
        "measure": 8,
        "aggregation": 10,
        "selector": 19,
    }


@pytest.mark.parametrize(("kind", "choice"), EACH)
def test_a_part_is_called_as_its_function_and_says_what_it_does(kind: str, choice: str) -> None:
    text = (CONF / kind / f"{choice}.yaml").read_text(encoding="utf-8")
    (comment,) = [c for c in text.splitlines() if c.startswith("# ") and "@package" not in c]
    assert comment.startswith("# READS HIDDEN LABELS.") == (choice in READ_LABELS)
    assert ("looks at no score" in comment) == (choice in LOOK_AT_NO_SCORE)
    content = settings("strategy=entropy", f"strategy/{kind}={choice}")
    assert content[kind]["_target_"].rpartition(".")[2] == choice  # the recorded name says it
    assert content.get("reads_labels", False) == (choice in READ_LABELS)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_names_its_parts_and_inherits_from_no_other(name: str) -> None:
    content = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    *parts, own = content["defaults"]
    assert own == "_self_"
    kinds = [kind for entry in parts for kind in entry]
    assert kinds in (list(PARTS), ["selector"])
    assert set(content) <= {"defaults", "_target_", "name", "full_data", "deterministic"}


@pytest.mark.parametrize(("kind", "choice"), EACH)
def test_an_exchanged_part_is_in_the_name(kind: str, choice: str) -> None:
    own = {"measure": "entropy", "aggregation": "mean", "selector": "top_k"}
    exchanged = "" if own[kind] == choice else f"+{kind}={choice}"
    composed_of = settings("strategy=entropy", f"strategy/{kind}={choice}")
    assert composed_of["name"] == f"entropy{exchanged}"


def test_several_exchanged_parts_are_in_the_name_in_one_order() -> None:
    parts = ("strategy/selector=power", "strategy/aggregation=sum")
    name = "entropy+aggregation=sum+selector=power"
    assert settings("strategy=entropy", *parts)["name"] == name
    assert settings("strategy=entropy", *reversed(parts))["name"] == name
    added = ("+strategy/measure=margin", "+strategy/aggregation=mean", "strategy/selector=kmeans")
    name = "core_set+measure=margin+aggregation=mean+selector=kmeans"
    assert settings("strategy=core_set", *added)["name"] == name
    target = "strategy.aggregation._target_=alseg.strategies.aggregations.sum"
    assert settings("strategy=entropy", target)["name"] == "entropy+aggregation=sum"
    assert settings("strategy=entropy", *parts, "strategy.name=mine")["name"] == "mine"


@pytest.mark.parametrize(
    ("exchanged", "whole"),
    [
        ("strategy=entropy strategy/selector=power", "power_entropy"),
        ("strategy=entropy strategy/aggregation=boundary_mean", "boundary_entropy"),
        ("strategy=variance strategy/measure=mutual_information", "bald"),
        ("strategy=clasp_pe strategy/selector=top_k", "entropy"),
        ("strategy=random strategy/selector=k_center", "core_set"),
        ("strategy=typiclust strategy/selector=class_balanced_random", "foreground_aware_random"),
        ("strategy=foreground_entropy strategy/selector=prefilter", "hybrid"),
        ("strategy=mi_entropy strategy/selector=kmeans_plus_plus", "badge"),
    ],
)
def test_a_selector_brings_what_it_looks_at_and_takes_it_along(exchanged: str, whole: str) -> None:
    assert unnamed(*exchanged.split()) == unnamed(f"strategy={whole}")


@pytest.mark.parametrize("selector", CHOICES["selector"])
def test_each_measure_goes_with_each_aggregation_and_selector_or_says_why_not(
    selector: str,
) -> None:
    for measure, aggregation in itertools.product(CHOICES["measure"], CHOICES["aggregation"]):
        keywords = {
            "name": "tried",
            **brought("measure", measure),
            **brought("aggregation", aggregation),
            **brought("selector", selector),
        }
        if selector in LOOK_AT_NO_SCORE:
            with pytest.raises(ConfigError, match="strategy tried: its selector looks at no score"):
                Strategy(**keywords)
        else:
            strategy = Strategy(**keywords)
            check_scores(strategy, n_classes=3)
            assert strategy.reads_labels == bool({measure, aggregation} & READ_LABELS)


@pytest.mark.parametrize("measure", CHOICES["measure"])
def test_one_plain_pass_has_no_disagreement_to_score(measure: str) -> None:
    keywords = {**brought("measure", measure), **brought("selector", "top_k")}
    keywords |= brought("aggregation", "mean")
    strategy = Strategy(name="alone", deterministic=True, **keywords)
    if measure in ("variance", "mutual_information", "variation_ratio"):
        with pytest.raises(ConfigError, match="strategy alone: it scores all cases 0, as a single"):
            check_scores(strategy, n_classes=3)
    else:
        check_scores(strategy, n_classes=3)


def test_an_exchanged_part_on_the_command_line(shared: Path, tmp_path: Path) -> None:
    parts = ("strategy=variance", "strategy/aggregation=boundary_mean")
    run_smoke(tmp_path, shared, *parts)
    recorded = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))["strategy"]
    assert recorded["name"] == "variance+aggregation=boundary_mean"
    assert RunState.load(tmp_path).finished_rounds == 2
    # a resumed run composes the same
    assert run_smoke(tmp_path, shared, f"resume={tmp_path}", *parts)["finished_rounds"] == 2
