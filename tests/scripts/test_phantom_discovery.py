"""The discovery study, on tiny phantoms."""

from __future__ import annotations

import runpy
from pathlib import Path

import pandas as pd
import pytest

from alseg.config.composition import conf_folder
from alseg.strategies.strategy import CaseScore
from tests.smoke_runs import run_smoke

STUDY = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "study_phantom_discovery.py"))


def test_all_strategies_look_through_one_network(tmp_path: Path, shared: Path) -> None:
    run_smoke(tmp_path, shared, "strategy=random", "pool.rounds=1", "data.phantom.hard_fraction=.5")
    table = STUDY["study"](tmp_path, seed=1)
    strategies = {path.stem for path in Path(conf_folder(), "strategy").glob("*.yaml")} - {"full"}
    assert set(table["strategy"].str.split().str[0]) == strategies
    found = table.pivot_table(index="strategy", columns="queried", values="found")
    assert (found.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)  # larger queries find no fewer
    # the pool has fewer than 10 volumes: whoever asks for 10 has them all
    assert (found[10] == 1).all()
    assert (table.loc[table["queried"] == 10, "by_chance"] == 1).all()
    report = STUDY["report"](table)
    assert "oracle_dice (reads hidden labels)" in report
    STUDY["draw"](table, tmp_path / "discovery.png")
    assert (tmp_path / "discovery.png").stat().st_size > 10_000


def test_auroc_by_hand() -> None:
    scores = [
        CaseScore(name, score) for name, score in zip("abcd", (4.0, 1.0, 3.0, 2.0), strict=True)
    ]
    # of the four pairs of a hard (a, d) and a plain case (b, c) three are in order
    assert STUDY["auroc"](scores, {"a", "d"}) == pytest.approx(0.75)
    assert pd.isna(STUDY["auroc"](None, {"a"}))
