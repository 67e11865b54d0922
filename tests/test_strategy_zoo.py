"""Every strategy of conf/strategy, through the front door: two rounds on tiny phantoms."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate

from alseg.cli import conf_folder
from alseg.strategies.strategy import Strategy
from alseg.train import train

STRATEGIES = sorted(path.stem for path in Path(conf_folder(), "strategy").glob("*.yaml"))
READ_LABELS = {"foreground_aware_random", "oracle_dice"}


def run(folder: Path, shared: Path, *overrides: str) -> Path:
    """Run the smoke experiment in this process; returns the run folder."""
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        config = compose(
            "config",
            [
                "experiment=smoke",
                "trainer=cpu",
                "tracking=none",
                "pictures=0",  # a second each
                f"output_dir={shared}",
                f"hydra.runtime.output_dir={folder}",
                "hydra.job.num=0",
                *overrides,
            ],
            return_hydra_config=True,
        )
    HydraConfig.instance().set_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    train(config)
    return folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs keep phantoms and preprocessed volumes."""
    return tmp_path_factory.mktemp("zoo")


def test_the_zoo_is_complete() -> None:
    assert len(STRATEGIES) == 26


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_runs_for_two_rounds(name: str, shared: Path, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", shared, f"strategy={name}")
    state = json.loads((folder / "state.json").read_text())
    rounds = 1 if name == "full" else 2
    assert state["finished_rounds"] == rounds
    acquired = [row for row in state["queries"] if row["round"] == 1]
    assert len({row["case_id"] for row in acquired}) == (0 if name == "full" else 2)
    history = pd.read_csv(folder / "metrics.csv")
    assert history["cost"].tolist() == history["labelled"].tolist()  # cost=volume


def compose_strategy(name: str) -> Strategy:
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        config = compose("config", [f"strategy={name}"])
    strategy: Strategy = instantiate(config.strategy)
    return strategy


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_is_called_as_its_file_and_flagged(name: str) -> None:
    strategy = compose_strategy(name)
    assert strategy.name == name
    assert strategy.reads_labels == (name in READ_LABELS)
    assert strategy.full_data == (name == "full")


@pytest.mark.parametrize("name", STRATEGIES)
def test_yaml_says_what_it_is_for(name: str) -> None:
    comment = Path(conf_folder(), "strategy", f"{name}.yaml").read_text().split("\n", 1)[0]
    assert comment.startswith("# ")
    text = Path(conf_folder(), "strategy", f"{name}.yaml").read_text()
    assert {"For:", "Bias:", "Cost:"} <= {word.strip("#") for word in text.split()}
    assert ("READS HIDDEN LABELS" in text) == (name in READ_LABELS)
