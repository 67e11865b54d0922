"""The benchmark of a growing round, on what is tiny."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_round.py"


def grown(folder: Path, *sizes: int, repeats: int = 1) -> tuple[dict[str, Any], str]:
    only = ["--only", "volume", "--sizes", *map(str, sizes), "--steps", "1"]
    only += ["--repeats", str(repeats)]
    files = ["--json", str(folder / "round.json"), "--plots", str(folder)]
    command = [sys.executable, str(SCRIPT), *only, *files]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    return json.loads((folder / "round.json").read_text(encoding="utf-8")), done.stdout


def table(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("| ")]


def test_points_are_measured_once_and_drawn(tmp_path: Path) -> None:
    first, _ = grown(tmp_path, 24)
    both, printed = grown(tmp_path, 24, 72)
    small, large = both.values()
    twice, printed_twice = grown(tmp_path, 24, repeats=2)
    assert [small] == list(first.values())  # seconds, too
    assert large["preprocessing"] > small["preprocessing"]
    assert large["peak MiB, scoring"] >= large["peak MiB at the start"] > 0
    rows = [row.split(" | ")[:2] for row in table(printed)]
    assert rows[1:] == [["| 13,824", "1"], ["| 373,248", "8"]]
    assert list(twice.values())[:2] == [small, large]
    assert [row.split(" | ")[-1] for row in table(printed_twice)[1:]] == ["2 |", "1 |"]
    assert (tmp_path / "growth_volume.png").stat().st_size > 10_000
