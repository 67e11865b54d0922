"""pool.repeat_uncertain, from the draws to the comparison."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from alseg.compare import compare
from alseg.core.errors import ConfigError
from tests.smoke_runs import run_smoke

# 5 of the 7 training volumes are labelled, the query takes 4: two of them at least are repeated
REPEATS = (
    "strategy=entropy",
    "pool.repeat_uncertain=true",
    "pool.initial=5",
    "pool.query_size=4",
    "pool.rounds=3",
    "steps_per_round=2",
    "val_interval=2",
)


def test_repeated_volumes_are_trained_with_more_and_counted_once(
    shared: Path, tmp_path: Path, drawn: list[Counter[str]]
) -> None:
    state = run_smoke(tmp_path / "run", shared, *REPEATS)
    queries = pd.DataFrame(state["queries"])
    first = queries[queries["round"] == 1]
    again = first[first["case_id"].isin(queries.loc[queries["round"] == 0, "case_id"])]
    assert len(again) >= 2
    assert (again["cost"] == 0).all()
    assert (first.drop(again.index)["cost"] == 1).all()
    for row in state["history"]:
        before = queries[queries["round"] < row["round"]]
        assert row["labelled"] == row["cost"] == before["case_id"].nunique()
        assert drawn[row["round"] - 1] == Counter(before["case_id"])
    assert sorted(state["pool"]["labelled"]) == sorted(queries["case_id"].unique())
    scores = pd.read_csv(tmp_path / "run" / "rounds" / "round_01" / "scores.csv")
    assert len(scores) == 7  # labelled volumes are scored as well


def test_repeats_compare_with_plain_runs(shared: Path, tmp_path: Path) -> None:
    run_smoke(tmp_path / "runs" / "repeats", shared, *REPEATS)
    plain = ("strategy=random", "pool.initial=5", "pool.query_size=1", *REPEATS[4:])
    run_smoke(tmp_path / "runs" / "random", shared, *plain)
    page = compare([str(tmp_path / "runs"), "--output", str(tmp_path / "page")])
    assert "repeat_uncertain" in page.read_text()  # among the settings that differ


def test_the_setting_is_checked(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="repeat_uncertain"):
        run_smoke(tmp_path, shared, "pool.repeat_uncertain=perhaps")
