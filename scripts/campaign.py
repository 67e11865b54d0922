"""A campaign in minutes, as ``make campaign`` runs it: what a person would type, and see.

    python scripts/campaign.py --folder runs/demo_campaign

Makes phantoms without labels, starts a run that asks for some, lets ``program_annotator`` answer
late, in parts and wrongly at first, and resumes the run until it has finished. The later requests
are answered while the run waits for it. A folder that an earlier call has made is
made anew; one that holds anything else is left as it is.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from program_annotator import NAME, annotate, newest_request

from alseg.config.settings import load_start
from alseg.core.errors import DataError
from alseg.data.phantom import write_phantom_dataset

N_VOLUMES = 40
PHANTOMS, SCANS, LABELS, RUN = "phantoms", "scans", "what_an_expert_would_draw", "run"
MADE_HERE = {PHANTOMS, SCANS, LABELS, RUN, "cache"}
TRAIN = [sys.executable, "-m", "alseg.train"]


def unlabelled_phantoms(folder: Path) -> Path:
    """Make phantoms of which all labels except one lie elsewhere.

    Returns:
        The folder of the labels as an expert would draw them.
    """
    whole = write_phantom_dataset(folder / PHANTOMS, n_volumes=N_VOLUMES, size=32)
    data, labels = folder / SCANS, folder / LABELS
    content = json.loads((whole / "dataset.json").read_text(encoding="utf-8"))
    first, *others = content["training"]
    shutil.copytree(whole / "imagesTr", data / "imagesTr")
    shutil.copytree(whole / "labelsTr", labels)
    (data / "labelsTr").mkdir()
    shutil.copy2(whole / first["label"], data / "labelsTr")  # of which MSD's layout wants one
    content |= {"training": [first], "test": [entry["image"] for entry in others]}
    content |= {"numTraining": 1, "numTest": len(others)}
    (data / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return labels


def started_with(folder: Path) -> list[str]:
    """The first settings of the run of the campaign in a folder."""
    return ["experiment=campaign", f"data.task.root={folder.absolute() / SCANS}"]


def what_is_not_of_a_demo(folder: Path) -> Path | None:
    """What an earlier call of this script has not made in a folder; None if it has made it all."""
    if folder.is_symlink() or not folder.is_dir():
        return folder
    if foreign := [path for path in sorted(folder.iterdir()) if path.name not in MADE_HERE]:
        return foreign[0]
    run_folder = folder / RUN
    if not run_folder.exists():
        return None
    try:
        overrides = load_start(run_folder).overrides or ()
    except DataError:
        return run_folder
    if not set(started_with(folder)) <= set(overrides):
        return run_folder
    return next(filter(is_of_a_person, answers_in(run_folder)), None)


def answers_in(run_folder: Path) -> list[Path]:
    """The tables that say who has annotated, and the labels beside which there is none."""
    tables = [path for path in [run_folder / "annotations" / "history.csv"] if path.is_file()]
    for final in sorted(run_folder.glob("requests/*/labels/final")):
        table = final / "answers.csv"
        tables += [table] if table.is_file() else sorted(final.iterdir())
    return tables


def is_of_a_person(path: Path) -> bool:
    """Whether a table names another annotator than the program, or a label has no table."""
    if path.suffix != ".csv":
        return True
    with path.open(encoding="utf-8") as table:
        return any(row.get("annotator") != NAME for row in csv.DictReader(table))


def show(arguments: Sequence[str]) -> list[str]:
    """Print a command as a person would type it; returns the whole of it."""
    print(f"\n$ python -m alseg.train {' '.join(arguments)}", flush=True)
    return [*TRAIN, *arguments]


def visit(run_folder: Path, labels: Path) -> bool:
    """Let the annotator visit the newest request; false if it has nothing to do there."""
    request = newest_request(run_folder)
    done = [] if request is None else annotate(request, labels)
    for line in done:
        print(f"  the annotator saves {line}", flush=True)
    return bool(done)


def campaign(folder: Path, settings: Sequence[str] = ()) -> Path:
    """Run the campaign in a new folder.

    Args:
        folder: where all of it goes.
        settings: more overrides for the run.

    Returns:
        The run folder.
    """
    labels = unlabelled_phantoms(folder)
    run_folder = folder / RUN
    subprocess.run(
        show(
            [
                *started_with(folder),
                f"hydra.run.dir={run_folder}",
                f"output_dir={folder}",
                "tracking=none",
                *settings,
            ]
        ),
        check=True,
    )
    resume = [f"resume={run_folder}"]
    while newest_request(run_folder) == run_folder / "requests" / "initial":
        visit(run_folder, labels)
        subprocess.run(show(resume), check=True)
    visit(run_folder, labels)
    waiting = show([*resume, "oracle=person", "oracle.wait=true", "oracle.poll_seconds=1"])
    with subprocess.Popen(waiting) as process:
        try:
            while process.poll() is None:
                time.sleep(1)
                visit(run_folder, labels)
        except BaseException:
            process.terminate()  # nobody answers it any more
            raise
    if process.returncode:
        raise SystemExit(process.returncode)
    print(f"\nlabels, their versions and who made them: {run_folder / 'annotations'}")
    print((run_folder / "annotations" / "history.csv").read_text(encoding="utf-8"))
    return run_folder


def main() -> None:
    """Run the campaign in the folder of the command line, anew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/demo_campaign"))
    parser.add_argument("settings", nargs="*", help="overrides for the run")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        if foreign := what_is_not_of_a_demo(arguments.folder):
            raise SystemExit(
                f"{foreign} is not of this demo, so nothing in {arguments.folder} was touched: "
                "move that folder away, or choose another one with --folder"
            )
        shutil.rmtree(arguments.folder)
    campaign(arguments.folder.absolute(), arguments.settings)


if __name__ == "__main__":
    main()
