"""``make campaign``, with hardly any training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from alseg.run.state import RunState

SCRIPT = Path(__file__).parents[2] / "scripts" / "campaign.py"
QUICK = ("steps_per_round=4", "val_interval=4", "pool.rounds=2", "pictures=0")


def test_the_demo_shows_all_of_a_campaign(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), f"--folder={tmp_path / 'demo'}", *QUICK]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=os.environ)
    assert done.returncode == 0, done.stderr + done.stdout
    printed = done.stdout + done.stderr
    for line in (
        "$ python -m alseg.train experiment=campaign",
        "6 of 6 volumes wait for annotation",
        "the annotator saves phantom_018: a label on a wrong grid",
        "not accepted, and left where it is",
        "holds background only",
        ": the proposal as it is",
        "4 of 4 volumes wait for annotation",
        "0 of 4 annotated",
        "round_01: 4 of 4 annotated · Dice of the proposals with the labels",
        "round 2/2 done · 10 labelled",
    ):
        assert line in printed, line
    run_folder = tmp_path / "demo" / "run"
    assert len(RunState.load(run_folder).pool.labelled) == 10
    history = pd.read_csv(run_folder / "annotations" / "history.csv")
    assert len(history) == 10
    refused = subprocess.run(
        [sys.executable, str(SCRIPT), f"--folder={run_folder}"],
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert "is there, and not of an earlier campaign" in refused.stderr
    assert run_folder.is_dir()
