"""Every strategy of conf/strategy, by running the command: two rounds on tiny phantoms."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
from hydra.utils import instantiate

from alseg.config.composition import conf_folder
from alseg.oracles.simulated import SimulatedOracle
from alseg.strategies.strategy import Strategy
from tests.smoke_runs import run_smoke, smoke_config

STRATEGIES = sorted(path.stem for path in Path(conf_folder(), "strategy").glob("*.yaml"))
READ_LABELS = {"foreground_aware_random", "oracle_dice"}


def test_the_zoo_is_complete() -> None:
    assert len(STRATEGIES) == 32


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_runs_for_two_rounds(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peeked: list[str] = []
    peek = SimulatedOracle.peek

    def recorded(self: SimulatedOracle, case_ids: Iterable[str]) -> dict[str, Path]:
        peeked.extend(case_ids)
        return peek(self, case_ids)

    monkeypatch.setattr(SimulatedOracle, "peek", recorded)
    state = run_smoke(tmp_path, shared, f"strategy={name}")
    assert state["finished_rounds"] == (1 if name == "full" else 2)
    acquired = [row["case_id"] for row in state["queries"] if row["round"] == 1]
    assert len(set(acquired)) == (0 if name == "full" else 2)
    history = pd.read_csv(tmp_path / "metrics.csv")
    assert history["cost"].tolist() == history["labelled"].tolist()  # cost=volume
    # Hidden labels are for those that say so, and for them the candidates' only.
    candidates = sorted([*state["pool"]["unlabelled"], *acquired])
    assert sorted(peeked) == (candidates if name in READ_LABELS else [])


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_is_called_as_its_file_and_flagged(name: str, tmp_path: Path) -> None:
    strategy: Strategy = instantiate(smoke_config(tmp_path, f"strategy={name}").strategy)
    assert strategy.name == name
    assert strategy.reads_labels == (name in READ_LABELS)
    assert strategy.full_data == (name == "full")


@pytest.mark.parametrize("name", STRATEGIES)
def test_yaml_says_what_it_is_for(name: str) -> None:
    text = Path(conf_folder(), "strategy", f"{name}.yaml").read_text(encoding="utf-8")
    comment = [line.removeprefix("# ") for line in text.split("\n") if line.startswith("# ")]
    assert {"For:", "Bias:", "Cost:"} <= set(" ".join(comment).split())
    assert comment[0].startswith("READS HIDDEN LABELS.") == (name in READ_LABELS)
