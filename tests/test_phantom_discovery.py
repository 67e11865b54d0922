"""The discovery study's arithmetic."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "study_phantom_discovery.py"


def test_discovery_by_hand() -> None:
    discovery = runpy.run_path(str(SCRIPT))["discovery"]
    state = {
        "pool": {"labelled": ["a", "b", "c"], "unlabelled": ["d", "e"]},
        "history": [{"round": 1}, {"round": 2}],
        "queries": [
            {"round": 0, "case_id": "a"},
            {"round": 1, "case_id": "b"},
            {"round": 1, "case_id": "c"},
        ],
    }
    table = discovery(state, hard_cases=["c", "e", "in the test set"])
    assert table["labelled"].tolist() == [1, 3]
    assert table["found"].tolist() == [0, 0.5]
    assert table["by_chance"].tolist() == pytest.approx([0.2, 0.6])
