"""The benchmark against the tutorial's way, with invented measurements."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_tutorial.py"
PARTS = {"training": 10.0, "evaluation": 5.0, "all, clock": 100.0}
SECONDS = {
    "alseg": PARTS | {"preprocessing": 1.0, "scoring": 8.0, "all, processor": 30.0, "dice": 0.5},
    "tutorial": PARTS | {"scoring": 24.0, "all, processor": 45.0, "dice": 0.25},
}


def test_an_interrupted_benchmark_measures_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    measured = []

    def measure(command: Sequence[str]) -> dict[str, float]:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(command[command.index("--way") + 1])
        return SECONDS[measured[-1]]

    monkeypatch.setitem(main.__globals__, "measured", measure)
    folder, file = tmp_path / "data", tmp_path / "tutorial.json"
    tiny = ["--volumes=9", "--size=24", "--repeats=2", f"--folder={folder}", f"--json={file}"]
    monkeypatch.setattr(sys, "argv", ["benchmark_tutorial.py", *tiny])
    with pytest.raises(KeyboardInterrupt):
        main()
    assert measured == ["alseg", "tutorial", "alseg"]
    measured.clear()
    main()
    assert measured == ["tutorial"]
    assert len(json.loads(file.read_text(encoding="utf-8"))["rows"]) == 4
    printed = capsys.readouterr().out
    assert "| scoring | 8.0 | 24.0 | 3.00 (3.00 to 3.00) |" in printed
    assert "| start | 6.0 | 6.0 | 1.00 (1.00 to 1.00) |" in printed

    monkeypatch.setattr(sys, "argv", ["benchmark_tutorial.py", *tiny, "--passes=5"])
    with pytest.raises(SystemExit, match="made with other settings"):
        main()
