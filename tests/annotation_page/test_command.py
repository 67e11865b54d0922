"""What ``python -m alseg.annotate`` says where there is nothing to annotate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from alseg.annotate import main
from alseg.annotation_page.command import review_desk_of
from alseg.config.settings import save_start
from alseg.core.pool import Pool
from tests.run_folders import blobs, run_on


def told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    monkeypatch.setattr(sys, "argv", ["alseg.annotate", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_folder_that_is_no_run_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(monkeypatch, capsys, str(tmp_path))
    assert f"{tmp_path} is no run folder: it has no config.yaml" in said


def test_it_says_that_it_starts_before_it_imports_what_takes_long(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from alseg.system import console\n"
        "say = console.say\n"
        "console.say = lambda text: say(f\"{text} {'torch' in sys.modules}\")\n"
        "from alseg.annotate import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert "no run folder" in done.stderr
    assert done.stdout.startswith("starts; the address of the page follows")
    assert done.stdout.endswith("half a minute False\n")


def test_a_simulated_run_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = "oracle: {_target_: alseg.oracles.simulated.SimulatedOracle}\n"
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    said = told(monkeypatch, capsys, str(tmp_path))
    assert f"the run in {tmp_path} asks nobody for labels" in said
    assert "review=true shows what it has asked for" in said


def test_a_run_folder_of_somebody_else_builds_nothing_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (
        "oracle: {_target_: alseg.oracles.person.PersonOracle}\n"
        "data: {task: {_target_: os.mkdir, path: made}}\n"
    )
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "data.task._target_ is 'os.mkdir'" in told(monkeypatch, capsys, str(tmp_path))
    assert not (tmp_path / "made").exists()


def test_no_link_in_a_run_folder_of_somebody_else_is_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = "oracle: {_target_: alseg.oracles.person.PersonOracle}\n"
    run, labels = tmp_path / "run", tmp_path / "labels"
    (run / "requests" / "round_01" / "labels").mkdir(parents=True)
    (run / "config.yaml").write_text(config, encoding="utf-8")
    labels.mkdir()
    link = run / "requests" / "round_01" / "labels" / "final"
    link.symlink_to(labels)
    said = told(monkeypatch, capsys, str(run))
    assert f"{link} is a link to {labels}, out of {run}: alseg writes into that" in said
    said = told(monkeypatch, capsys, str(run), "review=true")
    assert f"{link} is a link to {labels}, out of {run}: alseg writes into that" in said


def test_a_port_is_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(monkeypatch, capsys, str(tmp_path), "port=first")
    assert "port is 'first'; it must be a whole number of at least 1" in said


def test_a_review_is_asked_for_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "review is 'maybe'" in told(monkeypatch, capsys, str(tmp_path), "review=maybe")


def test_a_data_set_is_found_from_where_the_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = blobs(tmp_path / "data")
    run = run_on(tmp_path / "run", Path("data"), Pool(("case_03",), ()))
    save_start(run, [], at=str(tmp_path))
    monkeypatch.chdir(run)
    assert review_desk_of(str(run)).task.root == root
