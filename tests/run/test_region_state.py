"""What a run folder keeps of regions comes back, and damage of it is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alseg.core.pool import Pool
from alseg.core.units import Region, Unit
from alseg.run.score_journal import ScoreFile
from alseg.run.stages import QUERY, Stages
from alseg.run.state import RunState
from alseg.strategies.strategy import CaseScore

BOX: Region = ((0, 2), (3, 5), (1, 9))


def test_a_state_with_regions_comes_back(tmp_path: Path) -> None:
    state = RunState(Pool(("a",), ("b",), regions=(Unit("a", BOX),)), "hash")
    state.save(tmp_path)
    assert RunState.load(tmp_path) == state


def test_a_state_of_whole_volumes_does_not_mention_them(tmp_path: Path) -> None:
    RunState(Pool(("a",), ("b",)), "hash").save(tmp_path)
    pool = json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))["pool"]
    assert list(pool) == ["labelled", "unlabelled", "repeated"]


def test_scores_of_regions_come_back(tmp_path: Path) -> None:
    scores = [CaseScore("a", 0.5, (0.1, 0.2), n_passes=2, region=BOX), CaseScore("b", 0.25)]
    file = ScoreFile(tmp_path, "network")
    file.start([])
    file.append(scores)
    assert file.read() == [scores]


@pytest.mark.parametrize(
    ("region", "is_sound"),
    [(None, True), (BOX, True), ([[0, 2]] * 2, False), ([[2, 0]] * 3, False), ("0:2", False)],
)
def test_a_query_is_asked_again_if_its_regions_are_sound(
    tmp_path: Path, region: Any, is_sound: bool
) -> None:
    unit = {"case_id": "a", "region": region, "score": None}
    Stages(tmp_path).finish(QUERY, (), seconds=0.0, units=[unit])
    assert (QUERY in Stages(tmp_path)) == is_sound
