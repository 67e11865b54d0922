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


def test_adaptive_passes_behind_a_gate_query_the_same(
    tmp_path: Path, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plain = run_smoke(tmp_path / "plain", shared, *WINDOWS)
    cheap = run_smoke(
        tmp_path / "cheap", shared, *WINDOWS, "uncertainty.passes=adaptive", "uncertainty.gate=0.05"
    )
    assert queried(cheap) == queried(plain)
    passes = {
        name: pd.read_csv(tmp_path / name / "rounds" / "round_01" / "scores.csv")["n_passes"]
        for name in ("plain", "cheap")
    }
    assert (passes["plain"] == 6).all()
    told = [line for line in caplog.messages if "plain passes" in line]
    # of the first round; in this one the gate leaves no window out, so its own pass is one more
    taken = {"plain": 6.0, "cheap": 1 + passes["cheap"].mean()}
    assert told == [
        f"round 1/2 · scored {len(passes[name])} volumes at {cost:.1f} plain passes each"
        for name, cost in taken.items()
    ]
    assert passes["cheap"].max() == 6


def test_a_strategy_without_passes_does_not_mind(tmp_path: Path, shared: Path) -> None:
    settings = ("uncertainty.passes=adaptive", "uncertainty.gate=0.05")
    assert run_smoke(tmp_path, shared, "strategy=oracle_dice", *settings)["finished_rounds"] == 2
