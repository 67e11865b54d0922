"""``make campaign``, with hardly any training."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd

from alseg.config.settings import save_start
from alseg.run.state import RunState

SCRIPT = Path(__file__).parents[2] / "scripts" / "campaign.py"
sys.path.insert(0, str(SCRIPT.parent))  # where it finds program_annotator
DEMO = runpy.run_path(str(SCRIPT))
ANNOTATOR = runpy.run_path(str(SCRIPT.with_name("program_annotator.py")))
QUICK = ("steps_per_round=4", "val_interval=4", "pool.rounds=2", "pictures=0")


def test_the_demo_shows_all_of_a_campaign(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), f"--folder={tmp_path / 'demo'}", *QUICK]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env=os.environ, timeout=600
    )
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
    foreign = DEMO["what_is_not_of_a_demo"]
    assert foreign(tmp_path / "demo") is None
    refused = subprocess.run(
        [sys.executable, str(SCRIPT), f"--folder={run_folder}"],
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert refused.returncode == 1
    assert "is not of this demo, so nothing in" in refused.stderr
    assert "choose another one with --folder" in refused.stderr
    assert len(history) == len(pd.read_csv(run_folder / "annotations" / "history.csv"))
    # somebody has drawn a label, or two, with the demo's run
    history.assign(annotator="Ada").to_csv(run_folder / "annotations" / "history.csv", index=False)
    assert foreign(tmp_path / "demo") == run_folder / "annotations" / "history.csv"


def test_right_labels_are_left_alone_until_the_run_has_taken_all(
    tmp_path: Path,
) -> None:
    """To a run that waits they would never be complete: it has taken one of them, and no other."""
    request, labels = tmp_path / "round_01", tmp_path / "labels"
    final = request / "labels" / "final"
    final.mkdir(parents=True)
    labels.mkdir()
    rows = ["order,case,score,state", "1,a,,annotated", "2,b,,open", "3,c,,refused", "4,d,,open"]
    (request / "request.csv").write_text("\n".join(rows) + "\n")
    for name in ("a", "b", "c", "d"):
        (labels / f"{name}.nii.gz").write_bytes(b"right")
        (final / f"{name}.nii.gz").write_bytes(b"wrong" if name == "d" else b"right")
        os.utime(final / f"{name}.nii.gz", ns=(1, 1))
    assert ANNOTATOR["annotate"](request, labels) == ["d: the right label"]
    changed = {path.name for path in final.glob("*.nii.gz") if path.stat().st_mtime_ns != 1}
    assert changed == {"d.nii.gz"}
    assert ANNOTATOR["annotate"](request, labels) == []


def test_the_demo_removes_nothing_that_it_has_not_made(tmp_path: Path) -> None:
    foreign, started_with = DEMO["what_is_not_of_a_demo"], DEMO["started_with"]
    folder = tmp_path / "demo"
    run, expert = folder / "run", folder / "what_an_expert_would_draw"
    expert.mkdir(parents=True)
    run.mkdir()
    assert foreign(folder) == run  # it does not say how it was started
    save_start(run, ["data=folder", "data.root=scans", "oracle=person"])
    assert foreign(folder) == run
    save_start(run, ["experiment=campaign", "data.task.root=elsewhere"])
    assert foreign(folder) == run
    save_start(run, started_with(folder))
    assert foreign(folder) is None
    final = run / "requests" / "initial" / "labels" / "final"
    final.mkdir(parents=True)
    assert foreign(folder) is None
    (final / "a.nii.gz").write_bytes(b"drawn by hand")
    assert foreign(folder) == final / "a.nii.gz"
    (final / "answers.csv").write_text("case,annotator,minutes\na,program,3\n")
    assert foreign(folder) is None
    (final / "answers.csv").write_text("case,annotator,minutes\na,Ada,3\n")
    assert foreign(folder) == final / "answers.csv"
    (final / "answers.csv").unlink()
    (folder / "a_run_of_mine").mkdir()
    assert foreign(folder) == folder / "a_run_of_mine"
    (tmp_path / "link").symlink_to(folder)
    assert foreign(tmp_path / "link") == tmp_path / "link"
