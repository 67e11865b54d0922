"""A run says where its numbers come from."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from alseg import __version__
from alseg.run import provenance
from alseg.run.provenance import git_commit, recorded
from alseg.system.files import read_json


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_file_and_says_if_it_is_changed(tmp_path: Path) -> None:
    module, stranger = tmp_path / "module.py", tmp_path / "stranger.py"
    module.write_text("1")
    assert git_commit(module) is None
    git(tmp_path, "init")
    git(tmp_path, "add", "module.py")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(module) == commit
    stranger.write_text("1")
    assert git_commit(stranger) is None  # as a package that is installed below a checkout
    module.write_text("2")
    assert git_commit(module) == f"{commit}-dirty"


def test_each_process_of_a_run_is_recorded_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(provenance, "git_commit", lambda file: None)
    log = logging.getLogger("test")
    for argument in ("seed=1", "resume=a folder"):
        monkeypatch.setattr(sys, "argv", ["alseg.train", argument])
        with caplog.at_level(logging.INFO), recorded(tmp_path):
            log.info(f"line of {argument}")
        log.info("after the run")
    starts = read_json(tmp_path / "provenance.json")["starts"]
    assert [start["command"] for start in starts] == [
        "python -m alseg.train seed=1",
        "python -m alseg.train 'resume=a folder'",
    ]
    assert starts[0]["alseg"] == __version__
    assert starts[0]["git"] == "no checkout"
    assert starts[0]["packages"]["numpy"]
    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert "line of seed=1" in text
    assert "line of resume=a folder" in text
    assert "python -m alseg.train 'resume=a folder'" in text
    assert "after the run" not in text
