"""The benchmark of a training step, on tiny phantoms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_training.py"


def test_a_training_and_a_bare_loop_end_with_the_same_weights(tmp_path: Path) -> None:
    file = tmp_path / "training.json"
    command = [sys.executable, str(SCRIPT), "--quick", f"--json={file}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    result = json.loads(file.read_text(encoding="utf-8"))
    weights = {row["weights"] for row in result["rows"]}
    assert len(weights) == 1
    assert [row["way"] for row in result["rows"]] == ["alseg", "bare"] * 2
    assert all(row["seconds"] > 0 for row in result["rows"])
    assert result["ratios"] == sorted(result["ratios"])
    assert f"| {weights.pop()} |" in done.stdout
