"""Results are those of earlier versions: some of the runs of scripts/same_results.py."""

from __future__ import annotations

import json
import runpy
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "same_results.py"))
BEFORE = json.loads((Path(__file__).parents[2] / "tests" / "same_results.json").read_text())
# One of each kind; the script runs them all.
RUNS = (
    "strategy=badge",
    "strategy=clasp_pe",
    "strategy=foreground_aware_random",
    "strategy=mi_entropy",
    "strategy=random",
    "strategy=variance",
    "uncertainty=ensemble",
    "uncertainty=svgd",
    "uncertainty=tta",
    "pseudo_label",
    "proxy",
    "adaptive",
)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return list(SCRIPT["differences"](before, now))


@pytest.mark.parametrize("name", RUNS)
def test_results_are_as_they_were(name: str, shared: Path) -> None:
    now = SCRIPT["result"](SCRIPT["experiments"]()[name], shared)
    assert differences(BEFORE[name], now) == []


def test_the_table_holds_all_runs_of_the_script() -> None:
    assert set(BEFORE) == set(SCRIPT["experiments"]()) - set(SCRIPT["OF_ONE_MACHINE"])


def test_other_results_are_told() -> None:
    before = BEFORE["strategy=variance"] | {"files": {"queries.csv": "1"}}
    now = deepcopy(before)
    assert differences(before, now) == []
    now["queries"].reverse()
    now["files"]["queries.csv"] = "2"
    case_id, score = next(iter(now["scores"].items()))
    now["scores"][case_id] = 1.03 * score
    now["dice"]["test_dice"][1] += 0.02
    reported = differences(before, now)
    assert [text.split(" ")[0] for text in reported] == [
        "queries.csv",
        "queries",
        "score",
        "test_dice",
    ]
