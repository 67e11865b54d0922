"""The benchmark of growth, on what is tiny."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_growth.py"


def test_one_command_prints_the_table_of_growth_as_json() -> None:
    sizes = ["--candidates=300", "--pool=40", "--strategies=2", "--seeds=1", "--rounds=2"]
    only = ["--only", "selectors", "comparison", "rounds", "archive"]
    command = [sys.executable, str(SCRIPT), *only, *sizes, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    rows = {row.pop("row"): row for row in json.loads(done.stdout)}
    selectors = {name for name in rows if name.startswith("selector ")}
    assert len(selectors) == 15
    assert set(rows) - selectors == {"comparison", "rounds", "archive"}
    assert all(rows[name]["candidates"] == 300 for name in selectors)
    assert rows["comparison"]["runs"] == 2
    assert rows["rounds"]["bytes of state, round 10"] > rows["rounds"]["bytes of state, round 1"]
    assert rows["archive"]["bytes a scan"] > len("ct_0000001,done,0.5,,1.234,,")
