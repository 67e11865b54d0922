"""The benchmark of scoring, on tiny phantoms."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_acquisition.py"
BENCHMARK = runpy.run_path(str(SCRIPT))


def quick(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    command = [str(SCRIPT), "--quick", "--device=cpu", f"--folder={folder}"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.chdir(folder)
    BENCHMARK["main"]()
    results: dict[str, Any] = json.loads((folder / "quick_all.json").read_text())
    return results


def test_quick_measures_all_ways_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = quick(tmp_path, monkeypatch)
    ways = {line["way"]: line for line in results["summary"] if line["T"] == 10}
    forwards = {name: line["forwards / plain"] for name, line in ways.items()}
    assert forwards["exact (shared prefix)"] == pytest.approx(10)
    assert forwards["classic"] == pytest.approx(10)
    for lever in ("gate 0.5", "adaptive passes"):
        assert 1 < forwards["all, gate 0.5"] < forwards[lever] < 10
    # the same order, though masks and code are others
    assert ways["exact (shared prefix)"]["tau all"] > 0.5
    assert (tmp_path / "quick_all.png").stat().st_size > 10_000

    del results["row/gate 0.5 | 10 | 1"]
    (tmp_path / "quick_all.json").write_text(json.dumps(results))
    again = quick(tmp_path, monkeypatch)
    assert again.keys() == results.keys() | {"row/gate 0.5 | 10 | 1"}
    assert again["deterministic"] == results["deterministic"]  # seconds, too


def test_variance_of_groups_together() -> None:
    passes = np.random.default_rng(0).random((30, 2, 4, 5, 6))  # [T, C, D, H, W]
    groups = [(g.mean(0), g.var(0)) for g in np.split(passes, 3)]
    expected = passes.var(0).sum(0).mean()
    assert BENCHMARK["together"](groups) == pytest.approx(expected, rel=1e-12)


def test_overlap_of_queries() -> None:
    scores = np.arange(30.0)
    others = scores.copy()
    others[29] = -1  # one of the five highest is now the lowest
    assert BENCHMARK["overlap"](scores, others) == pytest.approx(4 / 5)
