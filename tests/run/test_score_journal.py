"""Scores are kept one by one."""

from pathlib import Path

import pytest

from alseg.active.acquisition_callback import candidate_cases
from alseg.run.score_journal import ScoreFile
from alseg.strategies.strategy import CaseScore, feature_vector

SCORES = [
    CaseScore("a", 0.1 + 0.2, class_scores=(1.0, 1e-300)),
    CaseScore("b", 2.0, features=feature_vector((0.5, -1.0, 3.0))),
    CaseScore("c", None, features=feature_vector((1.0, 2.0, 3.0)), labelled=True),
    CaseScore("d", 1.5, n_passes=2, pass_scores=(1.0, 1.5)),
]
GROUPS = [SCORES[:1], SCORES[1:2], SCORES[2:]]


@pytest.fixture
def file(tmp_path: Path) -> ScoreFile:
    file = ScoreFile(tmp_path, "network")
    file.start([])
    for group in GROUPS:
        file.append(group)
    return file


def test_scores_come_back_bit_by_bit(file: ScoreFile) -> None:
    assert file.read() == GROUPS
    again = ScoreFile(file.folder, "network")
    again.start(again.read()[:2])
    again.append(GROUPS[2])
    again.append([])
    assert again.read() == GROUPS
    again.delete()
    assert again.read() == []


def test_a_line_that_was_cut_off_is_left_out_and_not_continued(file: ScoreFile) -> None:
    content = file.path.read_bytes()
    first_two = len(b"".join(content.splitlines(keepends=True)[:2]))
    for length in range(first_two, len(content) - 1):
        file.path.write_bytes(content[:length])
        assert file.read() == GROUPS[:2]
    file.start(file.read())
    file.append(GROUPS[2])
    assert file.read() == GROUPS


def test_a_changed_line_is_told_and_left_out(
    file: ScoreFile, caplog: pytest.LogCaptureFixture
) -> None:
    file.path.write_text(file.path.read_text().replace("2.0", "9.0", 1))
    assert file.read() == [GROUPS[0], GROUPS[2]]
    assert f"line 2 of {file.path} is damaged" in caplog.text


def test_candidates_are_the_same_as_far_as_the_pools_agree() -> None:
    pool = [f"case_{i:03d}" for i in range(100)]
    chosen = candidate_cases(pool, 20, 1, 2)
    assert len(set(chosen)) == 20
    assert candidate_cases(pool[::-1], 20, 1, 2) == chosen
    assert candidate_cases(pool, 20, 1, 3) != chosen
    assert candidate_cases(pool, 20, 2, 2) != chosen
    # a strategy that has acquired other cases sees the same candidates, but for those
    others = [case_id for case_id in pool if case_id not in chosen[:5]]
    assert set(chosen[5:]) < set(candidate_cases(others, 20, 1, 2))
    assert candidate_cases(pool, None, 1, 2) == tuple(pool)
    assert candidate_cases(pool[:3], 20, 1, 2) == tuple(pool[:3])
