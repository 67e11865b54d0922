"""Damaged, swapped and made-up files in a run folder: computed again, or an error of one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alseg.comparison.runs import calibration_table, gather_runs
from alseg.config.command_line import override
from alseg.config.composition import composed
from alseg.config.settings import load_config, load_start
from alseg.core.errors import AlsegError, DataError
from alseg.engine.runs import train
from alseg.engine.sweeps import Job
from alseg.run.provenance import recorded
from alseg.run.score_journal import ScoreFile
from alseg.run.stages import Stages
from alseg.run.state import RunState
from alseg.strategies.strategy import CaseScore, feature_vector
from alseg.system.files import read_json, read_tensors, write_json, write_tensors
from alseg.system.interruption import Interrupted
from alseg.training.module import SegmentationModule
from tests.engine.test_interruption import results
from tests.smoke_runs import smoke_config, smoke_overrides

SETTINGS = (
    "data.num_workers=0",
    "val_interval=1",
    "round_start=continue",
    "steps_per_round=4",
    "checkpoint_every_n_steps=1",
    "uncertainty.n_passes=1",
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
        train(composed([override("resume", folder)]), folder)

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
    """The results of the run that continued from undamaged files."""
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


def other_weights(path: Path, **fields: Any) -> None:
    """Replace a checkpoint by a sound one that is not what the run has left there."""
    content = read_tensors(path) | fields
    weights = content["state_dict"]
    content["state_dict"] = {name: 2 * value for name, value in weights.items()}
    write_tensors(path, content)


def best_swapped(folder: Path, **fields: Any) -> None:
    other_weights(folder / TWO / "best.ckpt", **fields)


def test_with_a_validation_each_step_the_best_weights_are_there_after_the_first(run: Run) -> None:
    content = read_tensors(run.folder / TWO / "best.ckpt")
    assert content["global_step"] in (1, 2)  # of 4


def test_swapped_best_weights_of_a_training_under_way_are_trained_again(
    run: Run, whole: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run.copy(tmp_path / "run", best_swapped)
    run.resume(folder)
    assert f"{folder / TWO}/best.ckpt is damaged: it is not what this training" in caplog.text
    assert results(folder) == whole


def test_best_weights_that_no_repeated_step_replaces_are_told(run: Run, tmp_path: Path) -> None:
    def unbeatable(folder: Path) -> None:
        best_swapped(folder, global_step=99)
        path = folder / TWO / "training_best.ckpt"
        content = read_tensors(path)
        for state in content["callbacks"].values():
            if "best_model_score" in state:
                state["best_model_score"] = state["kth_value"] = torch.tensor(1.0)
                state["best_k_models"] = {p: torch.tensor(1.0) for p in state["best_k_models"]}
        write_tensors(path, content)

    folder = run.copy(tmp_path / "run", unbeatable)
    with pytest.raises(DataError, match=r"best\.ckpt is not what this training has left there"):
        run.resume(folder)


def test_other_weights_of_the_round_before_are_not_gone_on_from(run: Run, tmp_path: Path) -> None:
    folder = run.copy(tmp_path / "run", lambda folder: other_weights(folder / ONE / "best.ckpt"))
    with pytest.raises(DataError, match=f"{folder / ONE}/best.ckpt is damaged"):
        run.resume(folder)


@pytest.mark.parametrize("name", ["cases.csv", "calibration.csv"])
@pytest.mark.parametrize("noted", [True, False])
def test_a_comparison_reads_a_table_as_it_was_left_or_tells(
    run: Run, tmp_path: Path, name: str, noted: bool
) -> None:
    folder = run.copy(tmp_path / "run", lambda folder: None)
    if not noted:
        (folder / ONE / "stages.json").unlink()
    path = folder / ONE / name
    good = path.read_bytes()

    def read(folder: Path) -> tuple[dict[str, tuple[str, ...]], Any]:
        runs = gather_runs([folder], reference="variance", include_incomplete=True)
        return runs.runs[0].split(), calibration_table(runs)

    n_parts, n_bins = len(read(folder)[0]), len(read(folder)[1])
    assert n_parts == 3
    assert n_bins > 1
    header, *lines = good.decode().splitlines(keepends=True)
    changed = (header + lines[1] + lines[0] + "".join(lines[2:])).encode()
    unreadable = (b"", b"\xff\xfe\x00", b'"', header.encode() + b"a,b\n" * 2 + b"x,y,z,z,z,z,z,z\n")
    for content in (*unreadable, *(cuts(good) if noted else ()), *((changed,) if noted else ())):
        path.write_bytes(content)
        assert is_reported(read, folder), content


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
    monkeypatch.setattr("alseg.run.provenance.this_process", lambda: {"command": "x", "git": "x"})
    read, has_checksum = READERS[name]
    Job("finished").save(run.folder)
    folder = run.copy(tmp_path / "run", lambda folder: (folder / "state.json.previous").unlink())
    path = folder / name
    good = path.read_bytes()
    others = [p.read_bytes() for p in sorted(folder.rglob("*.json")) if p != path]
    n_reported = 0
    for content in (*cuts(good), *others, *(json.dumps(wrong).encode() for wrong in WRONG)):
        path.write_bytes(content)
        n_reported += is_reported(read, folder)
        if name.endswith(".yaml") and holds_no_settings(content):
            assert is_reported(read, folder), content
    if has_checksum:
        path.write_bytes(good)
        objects = [content for content in variants(read_json(path)) if isinstance(content, dict)]
        for content in objects[:: 1 + len(objects) // 60]:
            write_json(path, content)  # as if it had always been so
            n_reported += is_reported(read, folder)
    if has_checksum:  # half a YAML file is often a whole one
        assert n_reported > 10 or name in (f"{ONE}/stages.json", "job.json")  # these are done again
    else:
        assert n_reported > 0


def holds_no_settings(content: bytes) -> bool:
    try:
        # OmegaConf takes a text for a setting of that name; resuming finds that it has no others
        return not isinstance(yaml.safe_load(content.decode()) or None, dict | str)
    except (yaml.YAMLError, UnicodeDecodeError):
        return True


def is_reported(read: Callable[[Path], object], folder: Path) -> bool:
    try:
        read(folder)
    except AlsegError as error:
        return str(folder) in str(error)
    return False


def test_lines_of_a_score_file_that_are_no_scores_are_scored_again(tmp_path: Path) -> None:
    file = ScoreFile(tmp_path, "network")
    group = [CaseScore("a", 1.0, features=feature_vector((1.0, 2.0)))]
    file.start([group])
    for other in ("another network", ""):
        assert ScoreFile(tmp_path, other).read() == []
    for content in ("7", "null", '["a"]', "{}", '[{"score": 1}]', '[{"case_id": "a", "x": 1}]'):
        line = f"{file._checksum(content)} {content}\n"
        file.path.write_text(line + file._line(group))
        assert file.read()[-1] == group
        assert len(file.read()) <= 2
