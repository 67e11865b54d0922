"""Damaged, swapped and made-up files in a run folder: computed again or told, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alseg.errors import AlsegError
from alseg.files import read_json, write_json
from alseg.interruption import Interrupted
from alseg.models.segmentation import SegmentationModule
from alseg.outbox import Outbox
from alseg.provenance import recorded
from alseg.run import train
from alseg.scores import ScoreFile
from alseg.settings import load_config, load_start
from alseg.stages import Stages
from alseg.state import RunState
from alseg.strategies.strategy import CaseScore
from alseg.sweeps import Job
from tests.front_door import smoke_config, smoke_overrides
from tests.test_interruption import results

SETTINGS = (
    "data.num_workers=0",
    "steps_per_round=4",
    "checkpoint_every_n_steps=1",
    "scoring.n_passes=1",
)
WRONG = (None, 7, "x", [], {}, [None], {"x": None})


def variants(content: Any) -> Iterator[Any]:
    """A JSON value with one part of it left out or of another type, for each part."""
    yield from (wrong for wrong in WRONG if type(wrong) is not type(content))
    if isinstance(content, dict):
        for key, value in content.items():
            yield {k: v for k, v in content.items() if k != key}
            yield from (content | {key: variant} for variant in variants(value))
    if isinstance(content, list) and content:
        yield from ([variant, *content[1:]] for variant in variants(content[0]))


def cuts(content: bytes) -> Iterator[bytes]:
    yield from (content[:length] for length in range(0, len(content), max(1, len(content) // 20)))
    yield b"\xff\xfe\x00"


class Run:
    """A run that was cut in its second training, and copies of it with one file damaged."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self.folder, self.shared = folder, shared

    def start(self, folder: Path) -> None:
        folder.mkdir()
        overrides = smoke_overrides(self.shared, *SETTINGS)
        train(smoke_config(self.shared, *SETTINGS), folder, overrides)

    def resume(self, folder: Path) -> None:
        train(smoke_config(self.shared, f"resume='{folder}'"), folder)

    def copy(self, to: Path, damage: Callable[[Path], object]) -> Path:
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.folder, to)
        damage(to)
        return to


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    parent = tmp_path_factory.mktemp("runs")
    run = Run(parent / "cut", shared)
    step, calls = SegmentationModule.training_step, [0]

    def counted(self: SegmentationModule, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4 + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationModule, "training_step", counted)
        with pytest.raises(Interrupted):
            run.start(run.folder)
    return run


@pytest.fixture(scope="module")
def whole(run: Run) -> dict[str, Any]:
    """The results of the run that went on from undamaged files."""
    run.resume(run.copy(run.folder.parent / "whole", lambda folder: None))
    return results(run.folder.parent / "whole")


def swap(name: str, other: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copy(folder / other, folder / name)


ONE, TWO = "rounds/round_01", "rounds/round_02"


@pytest.mark.parametrize(
    "damage",
    [
        swap(f"{TWO}/training_best.ckpt", f"{ONE}/best.ckpt"),
        swap(f"{TWO}/best.ckpt", f"{ONE}/best.ckpt"),
        swap(f"{TWO}/stages.json", f"{ONE}/stages.json"),
    ],
    ids=["a checkpoint of another kind", "best weights of another round", "stages of another"],
)
def test_files_of_another_round_are_not_taken_for_ones_own(
    run: Run, whole: dict[str, Any], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    folder = run.copy(tmp_path / "run", damage)
    run.resume(folder)
    assert results(folder) == whole


def read_provenance(folder: Path) -> None:
    with recorded(folder):
        pass


# Each file and what reads it; the bool: whether it is written with a checksum of its content.
READERS: dict[str, tuple[Callable[[Path], object], bool]] = {
    "config.yaml": (load_config, False),
    "start.json": (load_start, True),
    "state.json": (RunState.load, True),
    "provenance.json": (read_provenance, True),
    f"{ONE}/stages.json": (lambda folder: Stages(folder / ONE), True),
    "job.json": (Job.load, True),
}


@pytest.mark.parametrize("name", READERS)
def test_whatever_a_file_holds_it_is_told_in_a_sentence(
    run: Run, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # hundreds of files
    monkeypatch.setattr("alseg.provenance.this_process", lambda: {"command": "x", "git": "x"})
    read, has_checksum = READERS[name]
    Job("finished").save(run.folder)
    folder = run.copy(tmp_path / "run", lambda folder: (folder / "state.json.previous").unlink())
    path = folder / name
    good = path.read_bytes()
    others = [p.read_bytes() for p in sorted(folder.rglob("*.json")) if p != path]
    told = 0
    for content in (*cuts(good), *others, *(json.dumps(wrong).encode() for wrong in WRONG)):
        path.write_bytes(content)
        told += is_told(read, folder)
    if has_checksum:
        path.write_bytes(good)
        objects = [content for content in variants(read_json(path)) if isinstance(content, dict)]
        for content in objects[:: 1 + len(objects) // 60]:
            write_json(path, content)  # as if it had always been so
            told += is_told(read, folder)
    # half a YAML file is often a whole one, and where its cuts fall depends on its length
    enough = 10 if has_checksum else 6
    assert told > enough or name in (f"{ONE}/stages.json", "job.json")  # these are done again


def is_told(read: Callable[[Path], object], folder: Path) -> bool:
    try:
        read(folder)
    except AlsegError as error:
        return str(folder) in str(error)
    return False


def test_lines_of_a_score_file_that_are_no_scores_are_scored_again(tmp_path: Path) -> None:
    file = ScoreFile(tmp_path, "network")
    group = [CaseScore("a", 1.0, features=(1.0, 2.0))]
    file.start([group])
    for other in ("another network", ""):
        assert ScoreFile(tmp_path, other).read() == []
    for content in ("7", "null", '["a"]', "{}", '[{"score": 1}]', '[{"case_id": "a", "x": 1}]'):
        line = f"{file._checksum(content)} {content}\n"
        file.path.write_text(line + file._line(group))
        assert file.read()[-1] == group
        assert len(file.read()) <= 2


@pytest.mark.parametrize("line", ["[]", "{}", "7", "null", '{"do": 7}', '{"do": "created"}'])
def test_a_journal_that_holds_no_operations_is_told_by_line(tmp_path: Path, line: str) -> None:
    journal = tmp_path / "tracking_journal.jsonl"
    journal.write_text(f"{line}\n{line}\n")
    with pytest.raises(AlsegError, match=rf"{journal}, line 1, is no operation"):
        Outbox(lambda operation: None, journal)
