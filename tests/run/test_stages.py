"""The finished stages of a round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alseg.core.errors import DataError
from alseg.run.stages import QUERY, Stages, check_unchanged

UNITS = [
    {"case_id": "a", "region": None, "score": 0.1 + 0.2},
    {"case_id": "b", "region": None, "score": None},
]


def test_a_query_comes_back_bit_by_bit(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("case_id,score\n", encoding="utf-8")
    Stages(tmp_path).finish(QUERY, ("scores.csv",), seconds=0.0, units=UNITS)
    assert Stages(tmp_path)[QUERY]["units"] == UNITS


@pytest.mark.parametrize(
    "units",
    [
        None,
        [{"case_id": 3, "region": None, "score": 1.0}],
        [{"case_id": "a", "region": None, "score": "high"}],
        [{"case_id": "a", "score": 1.0}],
        [{"case_id": "a", "region": [[0, 1]], "score": 1.0}],  # not known yet
    ],
)
def test_a_query_that_says_nothing_is_chosen_again(
    tmp_path: Path, units: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Stages(tmp_path).finish(QUERY, seconds=0.0, units=units)
    assert QUERY not in Stages(tmp_path)
    assert "does not say what the stage query has given" in caplog.text


@pytest.mark.parametrize("metrics", [None, [0.5], {"a": 0.5}, {"a": ["high"]}])
def test_a_fold_that_says_no_metrics_is_trained_again(tmp_path: Path, metrics: Any) -> None:
    stages = Stages(tmp_path)
    stages.finish("fold_1", seconds=1.0, skipped_steps=0, metrics={"a": [0.5, float("nan")]})
    stages.finish("fold_2", seconds=1.0, skipped_steps=0, metrics=metrics)
    assert list(Stages(tmp_path)) == ["fold_1"]


def test_stages_without_their_checksum_are_run_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Stages(tmp_path).finish(QUERY, seconds=0.0, units=UNITS)
    path = tmp_path / "stages.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["sha256"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert QUERY not in Stages(tmp_path)
    assert "is missing; what it is needed for starts again" in caplog.text
    with pytest.raises(DataError, match=r"stages\.json is damaged: the checksum"):
        check_unchanged(tmp_path / "last.ckpt")


def test_a_query_whose_scores_were_changed_is_chosen_again(tmp_path: Path) -> None:
    scores = tmp_path / "scores.csv"
    scores.write_text("case_id,score\n", encoding="utf-8")
    Stages(tmp_path).finish(QUERY, ("scores.csv",), seconds=0.0, units=UNITS)
    scores.write_text("case_id,scores\n", encoding="utf-8")
    assert QUERY not in Stages(tmp_path)
