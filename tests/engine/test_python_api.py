"""A run from Python, without the command line: what docs/python.md shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_lines_of_the_page_run_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, tables = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (resume,) = re.findall(
        r"`(train\(composed\(\[\"resume=.*?\)), run\)`", PAGE.read_text(encoding="utf-8")
    )
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    names: dict[str, Any] = {}
    exec(run + tables + f"again = {resume}, run)", names)
    assert (tmp_path / "runs" / "from_python" / "state.json").is_file()
    assert len(names["metrics"]) == len(names["queries"]["round"].unique())
    assert names["again"] == names["area"]
    assert caplog.text.count("the run had finished its 2 rounds before") == 1
