"""An annotator that is a program: it answers late, in parts, and wrongly at first.

    python scripts/program_annotator.py RUN_FOLDER --labels FOLDER

Each call is a visit to the newest request folder of a run. At the first visit the first volumes get
labels with the mistakes of ``MISTAKES``, one each, and the others none; at later visits what was
refused is corrected, and what is left is done. What is right is not saved again: to a run that
waits, a file that changes is still being written. The right labels come from a folder of
``CASE.nii.gz``. It uses nothing of alseg: like a person it sees the request folder only.
"""

from __future__ import annotations

import argparse
import csv
import filecmp
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

NAME = "program"  # what it calls itself in answers.csv
MINUTES = 3.5  # that it says a volume has taken


def annotate(request: Path, labels: Path, *, with_mistakes: bool = True) -> list[str]:
    """Visit a request folder once.

    Args:
        request: the folder.
        labels: the right label of each case.
        with_mistakes: whether first answers are wrong, or late.

    Returns:
        What was done, a line a volume.
    """
    answers, done = request / "labels" / "final", []
    with (request / "request.csv").open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    is_first = not any(answers.glob("*.nii.gz"))
    if with_mistakes and not is_first and all(row["state"] == "open" for row in rows):
        return []  # nobody has looked at the first answers yet
    for row in rows:
        case_id, number = row["case"], int(row["order"]) - 1
        path = answers / f"{case_id}.nii.gz"
        if row["state"] == "annotated":
            continue
        if not with_mistakes or path.is_file() or not is_first:
            if not (path.is_file() and filecmp.cmp(labels / path.name, path, shallow=False)):
                shutil.copyfile(labels / path.name, path)
                done.append(f"{case_id}: the right label")
        elif number < len(MISTAKES):
            mistake = list(MISTAKES)[number]
            if MISTAKES[mistake](request, labels / path.name, path):
                done.append(f"{case_id}: {mistake}")
    write_answers(answers / "answers.csv", [row["case"] for row in rows])
    return done


def wrong_grid(request: Path, label: Path, path: Path) -> bool:
    """Save a label that is one slice short."""
    image = nibabel.load(label)  # type: ignore[attr-defined]
    nibabel.save(image.slicer[:, :, :-1], path)  # type: ignore[attr-defined]
    return True


def unknown_class(request: Path, label: Path, path: Path) -> bool:
    """Save a label with a class that the data set does not have."""
    image = nibabel.load(label)  # type: ignore[attr-defined]
    classes = np.asarray(image.dataobj).astype(np.uint8)
    classes[0, 0, 0] = 200
    nibabel.save(nibabel.Nifti1Image(classes, image.affine), path)  # type: ignore[attr-defined]
    return True


def empty(request: Path, label: Path, path: Path) -> bool:
    """Save a label of nothing."""
    image = nibabel.load(label)  # type: ignore[attr-defined]
    classes = np.zeros(image.shape, np.uint8)
    nibabel.save(nibabel.Nifti1Image(classes, image.affine), path)  # type: ignore[attr-defined]
    return True


def unchanged_proposal(request: Path, label: Path, path: Path) -> bool:
    """Save the proposal as it is, where there is one."""
    proposal = request / "labels" / "original" / path.name
    if proposal.is_file():
        shutil.copyfile(proposal, path)
    return proposal.is_file()


MISTAKES: dict[str, Callable[[Path, Path, Path], bool]] = {
    "a label on a wrong grid": wrong_grid,
    "a label with an unknown class": unknown_class,
    "an empty label": empty,
    "the proposal as it is": unchanged_proposal,
}


def write_answers(path: Path, case_ids: list[str]) -> None:
    """Say who annotated each case, and in how many minutes."""
    with path.open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["case", "annotator", "minutes"])
        writer.writerows([case_id, NAME, MINUTES] for case_id in case_ids)


def newest_request(run_folder: Path) -> Path | None:
    """The request folder that was completed last; None if there is none."""
    found = list(run_folder.glob("requests/*/request.json"))
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent if found else None


def main() -> None:
    """Visit a run's newest request, and print what was done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--labels", type=Path, required=True, help="the right labels, CASE.nii.gz")
    parser.add_argument("--no-mistakes", action="store_true", help="all at once, and right")
    arguments = parser.parse_args()
    request = newest_request(arguments.run_folder)
    if request is None:
        raise SystemExit(f"no request in {arguments.run_folder}")
    for line in annotate(request, arguments.labels, with_mistakes=not arguments.no_mistakes):
        print(f"annotator: {line}")


if __name__ == "__main__":
    main()
