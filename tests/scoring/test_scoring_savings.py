"""What makes scoring cheaper, by running the command: the same query as the plain way."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.smoke_runs import run_smoke

# two windows a volume, of which the passes can leave one out
WINDOWS = ("data.inferer.roi_size=[16,32,32]", "uncertainty.n_passes=6")


def queried(state: dict[str, Any]) -> list[str]:
    return [row["case_id"] for row in state["queries"] if row["round"] == 1]


def passes_of(folder: Path) -> pd.Series:
    return pd.read_csv(folder / "rounds" / "round_01" / "scores.csv")["n_passes"]


def test_adaptive_passes_query_the_same(tmp_path: Path, shared: Path) -> None:
    plain = run_smoke(tmp_path / "plain", shared, *WINDOWS)
    cheap = run_smoke(tmp_path / "cheap", shared, *WINDOWS, "uncertainty.passes=adaptive")
    assert queried(cheap) == queried(plain)
    assert (passes_of(tmp_path / "plain") == 6).all()
    assert passes_of(tmp_path / "cheap").max() == 6


def test_what_was_saved_behind_a_gate_is_told(
    tmp_path: Path, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = ("uncertainty.passes=adaptive", "uncertainty.gate=0.3")
    run_smoke(tmp_path, shared, *WINDOWS, *settings)
    assert "saves nothing" not in caplog.text
    passes = passes_of(tmp_path)
    (told,) = (line for line in caplog.messages if "plain passes" in line)
    assert told.startswith(f"round 1/2 · scored {len(passes)} volumes at ")
    cost = float(told.split(" at ")[1].split()[0])
    # the deterministic pass, and at least one of two windows in each of the others
    assert 1 + passes.mean() / 2 - 0.05 <= cost <= 1 + passes.mean() + 0.05


def test_a_strategy_that_the_gate_does_not_suit_runs_all_and_says_so(
    tmp_path: Path, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run_smoke(tmp_path, shared, *WINDOWS, "strategy=badge", "uncertainty.gate=0.3")
    assert "strategy badge compares volumes by their features" in caplog.text
    assert "at 6.0 plain passes each" in caplog.text


def test_a_strategy_without_passes_does_not_mind(tmp_path: Path, shared: Path) -> None:
    settings = ("uncertainty.passes=adaptive", "uncertainty.gate=0.05")
    assert run_smoke(tmp_path, shared, "strategy=oracle_dice", *settings)["finished_rounds"] == 2
