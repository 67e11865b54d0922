import json
import os
from pathlib import Path

import pytest

from alseg.core.errors import ConfigError, DataError, StorageError
from alseg.core.pool import Pool
from alseg.run.lock import locked_run
from alseg.run.state import RunState
from tests.checksums import write_signed


@pytest.fixture
def state() -> RunState:
    start = RunState(pool=Pool.start("abcd", "b"), config_hash="h")
    return start.after_round(
        start.pool.acquire(["d"]),
        metrics={"round": 1, "labelled": 1, "val_dice": 0.5, "test_dice": float("nan")},
        queries=[{"round": 1, "case_id": "d", "score": 0.1, "rank": 1}],
        timings={"round": 1, "training_seconds": 2.0},
    )


def test_a_state_survives_the_disk(state: RunState, tmp_path: Path) -> None:
    state.save(tmp_path)
    loaded = RunState.load(tmp_path)
    assert loaded.pool == state.pool
    assert repr(loaded) == repr(state)  # repr, because NaN is not equal to itself
    assert loaded.finished_rounds == 1
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_only_a_round_without_a_query_can_be_taken_back(state: RunState) -> None:
    assert state.has_asked
    with pytest.raises(ValueError, match="no finished round is without a query"):
        state.before_last_round()
    row = {"round": 2, "labelled": 2, "val_dice": 0.6, "test_dice": 0.7}
    ended = state.after_round(state.pool, row, [], {"round": 2, "training_seconds": 1.0})
    assert not ended.has_asked
    assert repr(ended.before_last_round()) == repr(state)


def test_an_interrupted_write_leaves_the_old_state(
    state: RunState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.save(tmp_path)
    before = (tmp_path / "state.json").read_bytes()

    def fail(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StorageError, match=r"cannot write .*state.json.*no space.*MiB are free"):
        RunState(pool=Pool((), ()), config_hash="other").save(tmp_path)
    assert (tmp_path / "state.json").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "nothing to resume"),
        ("{", "cannot be read"),
        ("[]", "does not hold a JSON object"),
        ('{"version": 1}', "not a valid run state"),
        ('{"version": 99, "pool": {}}', "format version 99"),
        ('{"version": 1, "pool": {"labelled": ["a"], "unlabelled": ["a"]}, "history": [], '
         '"queries": [], "timings": [], "config_hash": "h"}', "twice in the pool"),
    ],
)  # fmt: skip
def test_a_broken_state_is_told_by_name(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        write_signed(tmp_path / "state.json", content)
    with pytest.raises(DataError, match=message) as error:
        RunState.load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_an_edited_state_is_refused_with_and_without_its_checksum(
    state: RunState, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state.save(tmp_path)
    path = tmp_path / "state.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"hardware": "another"}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match="its checksum does not agree"):
        RunState.load(tmp_path)
    del content["sha256"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"state\.json is damaged: the checksum .* is missing"):
        RunState.load(tmp_path)
    good = tmp_path / "good"
    good.mkdir()
    state.save(good)
    (good / "state.json").rename(tmp_path / "state.json.previous")  # the way out
    assert repr(RunState.load(tmp_path)) == repr(state)
    assert "is missing; continuing from" in caplog.text


def test_no_field_is_lost(state: RunState, tmp_path: Path) -> None:
    state.save(tmp_path)
    content = json.loads((tmp_path / "state.json").read_text())
    assert content["history"][0]["labelled"] == 1
    assert content["timings"][0]["training_seconds"] == 2.0


def later(state: RunState) -> RunState:
    return state.after_round(state.pool.acquire(["a"]), {"round": 2}, [], {"round": 2})


@pytest.mark.parametrize("damage", ["truncated", "changed", "deleted"])
def test_a_damaged_state_is_replaced_by_the_one_before(
    state: RunState, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    state.save(tmp_path)
    later(state).save(tmp_path)
    path = tmp_path / "state.json"
    content = path.read_text()
    if damage == "truncated":
        path.write_text(content[: len(content) // 2])
    elif damage == "changed":
        path.write_text(content.replace('"finished_rounds": 2', '"finished_rounds": 3'))
    else:
        path.unlink()
    assert RunState.is_in(tmp_path)
    assert repr(RunState.load(tmp_path)) == repr(state)
    assert str(path) in caplog.text
    assert "the state after round 1" in caplog.text

    later(state).save(tmp_path)  # the damaged file does not push out the good one
    path.write_text("{")
    assert repr(RunState.load(tmp_path)) == repr(state)


def test_two_damaged_states_are_both_told(state: RunState, tmp_path: Path) -> None:
    state.save(tmp_path)
    later(state).save(tmp_path)
    for path in tmp_path.iterdir():
        path.write_text("{")
    with pytest.raises(DataError, match=r"state.json cannot.*state.json.previous cannot"):
        RunState.load(tmp_path)


def test_a_held_folder_names_its_owner(tmp_path: Path) -> None:
    (tmp_path / ".tmp-123-state.json").write_text("half")
    with locked_run(tmp_path):
        assert not (tmp_path / ".tmp-123-state.json").exists()
        owner = f"in use by process {os.getpid()} on {os.uname().nodename}"
        with pytest.raises(ConfigError, match=owner), locked_run(tmp_path):
            pass
        (tmp_path / ".owner.json").unlink()
        with pytest.raises(ConfigError, match="in use by another process"), locked_run(tmp_path):
            pass
    with locked_run(tmp_path):
        pass
