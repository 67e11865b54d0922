"""What the launchers on clusters do without a cluster; test_slurm.py and test_ray.py have one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hydra_plugins.alseg_launchers.slurm import states_in_queue


def squeue(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a command of this name in front of PATH."""
    path = folder / "squeue"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_the_queue_gives_the_states_of_an_arrays_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue(tmp_path, monkeypatch, "echo '7_0 RUNNING'; echo '7_1 OUT_OF_MEMORY'")
    assert states_in_queue("7") == {"7_0": "RUNNING", "7_1": "OUT_OF_MEMORY"}


def test_jobs_that_slurm_has_forgotten_are_not_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue(tmp_path, monkeypatch, "echo 'error: Invalid job id specified' >&2; exit 1")
    assert states_in_queue("7") == {}


def test_no_job_counts_as_ended_while_slurm_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue(tmp_path, monkeypatch, "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert states_in_queue("7") is None


def test_launchers_load_nothing_before_they_are_chosen() -> None:
    # Hydra imports all plugins at the start of each command, to complete a word as well
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, hydra_plugins.alseg_launchers.ray, hydra_plugins.alseg_launchers.slurm\n"
            "print({'ray', 'submitit', 'torch', 'alseg'} & set(sys.modules))",
        ],
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("launcher", "module", "missing"),
    [
        ("slurm", "submitit", "hydra/launcher=slurm needs submitit: pip install 'alseg[submitit]'"),
        ("ray", "ray", "hydra/launcher=ray needs Ray: pip install 'alseg[ray]'"),
    ],
)
def test_a_library_that_is_missing_is_named(
    launcher: str, module: str, missing: str, tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / f"{module}.py").write_text("raise ImportError('blocked')", encoding="utf-8")
    code = (
        f"import sys; sys.path.insert(0, {str(blocked)!r})\n"
        "sys.argv = ['alseg.train', '-m', 'experiment=smoke', 'tracking=none',\n"
        f"    'hydra/launcher={launcher}', 'output_dir={tmp_path}']\n"
        "from alseg.train import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 2, done.stderr
    assert f"alseg: error: {missing}" in done.stderr
