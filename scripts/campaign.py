"""A campaign in minutes, as ``make campaign`` runs it: what a person would type, and see.

    python scripts/campaign.py --folder runs/campaign

Makes phantoms without labels, starts a run that asks for some, lets ``program_annotator`` answer
late, in parts and wrongly at first, and resumes the run until it has finished. The later requests
are answered while the run waits for it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from program_annotator import annotate, newest_request

from alseg.data.phantom import write_phantom_dataset

N_VOLUMES = 40
TRAIN = [sys.executable, "-m", "alseg.train"]


def unlabelled_phantoms(folder: Path) -> tuple[Path, Path]:
    """Phantoms of which all labels but one lie elsewhere.

    Returns:
        The data set, and the folder of the labels as an expert would draw them.
    """
    whole = write_phantom_dataset(folder / "phantoms", n_volumes=N_VOLUMES, size=32)
    data, labels = folder / "scans", folder / "what_an_expert_would_draw"
    content = json.loads((whole / "dataset.json").read_text(encoding="utf-8"))
    first, *others = content["training"]
    shutil.copytree(whole / "imagesTr", data / "imagesTr")
    shutil.copytree(whole / "labelsTr", labels)
    (data / "labelsTr").mkdir()
    shutil.copy2(whole / first["label"], data / "labelsTr")  # of which MSD's layout wants one
    content |= {"training": [first], "test": [entry["image"] for entry in others]}
    content |= {"numTraining": 1, "numTest": len(others)}
    (data / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return data, labels


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
    data, labels = unlabelled_phantoms(folder)
    run_folder = folder / "run"
    subprocess.run(
        show(
            [
                "experiment=campaign",
                f"data.task.root={data}",
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
    waiting = show([*resume, "oracle=person", "oracle.wait=true", "oracle.poll_seconds=2"])
    with subprocess.Popen(waiting) as process:
        while process.poll() is None:
            time.sleep(4)
            visit(run_folder, labels)
    if process.returncode:
        raise SystemExit(process.returncode)
    print(f"\nlabels, their versions and who made them: {run_folder / 'annotations'}")
    print((run_folder / "annotations" / "history.csv").read_text(encoding="utf-8"))
    return run_folder


def main() -> None:
    """Run the campaign in the folder of the command line, anew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/campaign"))
    parser.add_argument("settings", nargs="*", help="overrides for the run")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        if not (arguments.folder / "what_an_expert_would_draw").is_dir():
            raise SystemExit(f"{arguments.folder} is there, and not of an earlier campaign")
        shutil.rmtree(arguments.folder)
    campaign(arguments.folder.absolute(), arguments.settings)


if __name__ == "__main__":
    main()
