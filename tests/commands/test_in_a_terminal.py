"""The command as a person runs it: in a terminal, whose screen is read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminal import Session, run_in_terminal

SMOKE = ("experiment=smoke", "trainer=cpu", "tracking=none", "pictures=0")


def train(*overrides: str, phantoms: Path, folder: Path, **how: object) -> Session:
    """``python -m alseg.train experiment=smoke`` in a terminal."""
    data = f"data.task.root={phantoms}"
    command = ("-m", "alseg.train", *overrides)
    resumes = any(o.startswith("resume=") for o in overrides)
    settings = () if resumes else (*SMOKE, data)
    return run_in_terminal(*command, *settings, folder=folder, **how)  # type: ignore[arg-type]


def assert_clean(session: Session) -> None:
    """No line twice, no bar left behind, no error, and the cursor is there again."""
    assert "error" not in session.text.lower()
    assert "Traceback" not in session.text
    lines = [line for line in session.lines if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert len(lines) == len(set(lines)), session.text
    assert "━━━━━━━━━━" not in session.text.split("┏")[0], session.text  # the table has some too
    assert session.raw.rfind(b"\x1b[?25h") >= session.raw.rfind(b"\x1b[?25l")


@pytest.mark.parametrize(
    ("columns", "term"), [(80, "xterm-256color"), (120, "xterm-256color"), (80, "dumb")]
)
def test_a_run_shows_its_progress_and_finishes(
    columns: int, term: str, tmp_path: Path, phantoms: Path
) -> None:
    session = train(phantoms=phantoms, folder=tmp_path, columns=columns, term=term)
    assert session.exit_code == 0, session.text
    assert_clean(session)
    assert "round 2/2 done · 4 labelled · test Dice" in session.text
    # the bar behind its title, in colour; elsewhere lines come each 30 s
    assert (b"2 labelled \x1b[38" in session.raw) == (term != "dumb")
    (run,) = tmp_path.glob("runs/smoke/*/metrics.csv")
    assert f"python -m alseg.compare {run.parent.parent}" in session.text.replace("\n", "")
    assert "round 2/2 done" in (run.parent / "run.log").read_text(encoding="utf-8")
    provenance = json.loads((run.parent / "provenance.json").read_text(encoding="utf-8"))
    (start,) = provenance["starts"]
    assert "experiment=smoke" in start["command"]
    assert start["packages"]["torch"]


OUR_LINES = re.compile(
    r"""\d\d:\d\d:\d\d\ (preprocessed\ \d+\ volumes|recording\ in\ MLflow:\ experiment)
    |\d\d:\d\d:\d\d\ (round\ \d/\d|When\ to\ stop:)
    |\s*Phantom,\ strategy\ |[┏┃┡│└]|area\ under\ the\ budget\ curve
    |(run\ folder|learning\ curve|MLflow\ charts|TensorBoard|compare\ runs):\ |$""",
    re.VERBOSE,
)


@pytest.mark.parametrize("in_terminal", [True, False])
def test_libraries_tell_a_person_nothing(in_terminal: bool, tmp_path: Path, phantoms: Path) -> None:
    """A whole run, with a store to be made and Lightning's reason to speak of Slurm."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.touch(0o755)
    path = {"PATH": f"{srun.parent}:{os.environ['PATH']}"}
    command = [*("-m", "alseg.train", *SMOKE), "tracking=[mlflow,tensorboard]"]
    command += ["strategy=variance", f"data.task.root={phantoms}"]
    if in_terminal:
        session = run_in_terminal(*command, folder=tmp_path, columns=400, environment=path)
        lines = session.lines
    else:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=os.environ | path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        lines = done.stdout.splitlines()
    assert any("round 2/2 done" in line for line in lines)
    assert [line for line in lines if not OUR_LINES.match(line)] == []
    (log,) = tmp_path.glob("runs/smoke/*/run.log")
    levels = re.compile(" (?:INFO|WARNING) ")
    logged = [levels.split(line, maxsplit=1)[1] for line in log.read_text("utf-8").splitlines()]
    shown = [line.partition(" ")[2] for line in lines if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert logged[2:] == shown  # after the command and the version


def test_a_run_stopped_by_ctrl_c_goes_on_where_it_was(tmp_path: Path, phantoms: Path) -> None:
    long = ("steps_per_round=60", "val_interval=60")
    stopped = train(*long, phantoms=phantoms, folder=tmp_path, type_after=("step 2", "\x03"))
    assert stopped.exit_code == 130, stopped.text
    assert_clean(stopped)
    assert "alseg: stopping after this step; a second signal does not wait" in stopped.text
    command = "python -m alseg.train resume="
    assert command in stopped.text
    (run,) = tmp_path.glob("runs/smoke/*/config.yaml")
    resumed = train(f"resume={run.parent}", phantoms=phantoms, folder=tmp_path)
    assert resumed.exit_code == 0, resumed.text
    assert_clean(resumed)
    assert "round 2/2 done" in resumed.text
    provenance = json.loads((run.parent / "provenance.json").read_text(encoding="utf-8"))
    assert len(provenance["starts"]) == 2


def test_a_sweep_sums_up_and_its_runs_are_compared(tmp_path: Path, phantoms: Path) -> None:
    jobs = ("-m", "strategy=random,full", "seed=1,2")
    short = ("steps_per_round=1", "val_interval=1")
    session = train(*jobs, *short, phantoms=phantoms, folder=tmp_path)
    assert session.exit_code == 0, session.text
    assert_clean(session)
    assert "4 of 4 jobs finished" in session.text
    assert max(map(len, session.lines)) <= 80
    (sweep,) = tmp_path.glob("runs/smoke/sweep_*")
    page = run_in_terminal("-m", "alseg.compare", str(sweep), folder=tmp_path)
    assert page.exit_code == 0, page.text
    assert "index.html" in page.text


def test_a_data_set_is_checked(tmp_path: Path, phantoms: Path) -> None:
    session = run_in_terminal(
        "-m", "alseg.validate", f"data.task.root={phantoms}", "workers=1", folder=tmp_path
    )
    assert session.exit_code == 0, session.text
    assert "12 cases of Phantom: 4 ok, 8 with warnings, 0 with errors" in session.text
    assert max(map(len, session.lines)) <= 80
    assert session.raw.rfind(b"\x1b[?25h") >= session.raw.rfind(b"\x1b[?25l")
