"""Help, version and completion answer at once: they import no library that computes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from alseg import __version__

COMMANDS = ("train", "plan", "validate", "compare", "predict", "score", "export", "sync", "ui")
HEAVY = re.compile(r"\| +(torch|pytorch_lightning|lightning|monai|mlflow)(\.|$)", re.MULTILINE)


def answer(command: str, *arguments: str, **environment: str) -> str:
    """What a command prints; nothing heavy was imported for it."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"alseg.{command}", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "import time:" in done.stderr
    assert not HEAVY.search(done.stderr)
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    assert f"alseg.{command}" in answer(command, "--help")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_version_is_ours_and_names_the_libraries(command: str) -> None:
    printed = answer(command, "--version")
    assert printed.startswith(f"alseg {__version__} ")
    assert f"torch {version('torch')}" in printed


def test_help_lists_the_parts_of_strategies() -> None:
    lines = answer("train", "--help").splitlines()
    (selectors,) = [line for line in lines if line.startswith("strategy/selector: ")]
    assert "power, " in selectors
    assert [line for line in lines if "strategy/selector=power" in line]


def test_completion_imports_nothing_heavy() -> None:
    line = "alseg-train strategy=v"
    choices = answer("train", "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert choices.split() == ["strategy=variance", "strategy=variation_ratio"]


def test_showing_the_configuration_imports_nothing_heavy() -> None:
    assert "steps_per_round: 250" in answer("train", "--cfg", "job")


def test_what_counts_as_heavy_is_recognised() -> None:
    assert HEAVY.search("import time:       422 |       8566 |     torch.nn\n")
