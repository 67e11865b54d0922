"""The front door as a person opens it: in a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.terminal import run_in_terminal


@pytest.mark.parametrize(
    ("columns", "term"), [(80, "xterm-256color"), (120, "xterm-256color"), (80, "dumb")]
)
def test_a_run_finishes_in_a_terminal(
    columns: int, term: str, tmp_path: Path, phantoms: Path
) -> None:
    session = run_in_terminal(
        "-m",
        "alseg.train",
        "experiment=smoke",
        f"data.task.root={phantoms}",
        folder=tmp_path,
        columns=columns,
        term=term,
    )
    assert session.exit_code == 0, session.text
    assert "error" not in session.text
    assert len(list(tmp_path.glob("runs/smoke/*/metrics.csv"))) == 1
