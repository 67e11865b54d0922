"""The benchmark of scoring, on tiny phantoms."""

from __future__ import annotations

import json
import runpy
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_acquisition.py"
BENCHMARK = runpy.run_path(str(SCRIPT))


def benchmark(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), f"--folder={folder}", *arguments])
    monkeypatch.chdir(folder)
    BENCHMARK["main"]()


def quick(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    benchmark(monkeypatch, folder, "--quick", "--device=cpu")
    results: dict[str, Any] = json.loads((folder / "quick_all.json").read_text())
    return results


def test_quick_measures_all_ways_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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

    with pytest.raises(SystemExit):
        benchmark(monkeypatch, tmp_path, "--quick", "--device=cpu", "--window", "16", "16", "16")
    told = capsys.readouterr().err
    assert (
        "quick_all.json was measured with another setting (window: None, now [16, 16, 16])" in told
    )

    run = tmp_path / "training_quick_all"
    benchmark(monkeypatch, tmp_path, "--quick", "--device=cpu", f"--run={run}", "--gates=0.5")
    of_run = json.loads((tmp_path / "training_quick_all_all.json").read_text())
    assert of_run["setting"]["dice"] == results["setting"]["dice"]
    ways = [way for way in of_run if way.startswith("row/")]
    assert len(ways) == 5  # two seeds of all levers together, and three of one
    for way, case in product(ways, results["setting"]["cases"]):
        assert of_run[way][case]["score"] == again[way][case]["score"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--run=nowhere"], "nowhere is not a run folder"),
        (["--reference=15"], "--reference must be 20, 30, 40"),
        (["--volumes=2"], "--volumes must be at least 3"),
        (["--data=hippocampus"], "--data hippocampus needs --data-root"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        benchmark(monkeypatch, tmp_path, *arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


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
