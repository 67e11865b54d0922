"""Laying out what a person is asked for: files in a folder that any program can open."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from alseg.core.units import Query
from alseg.data.file_types import (
    ANSWER_ENDINGS,
    ITK_ENDINGS,
    NIFTI_ENDINGS,
    ending_of,
    name_without_ending,
)
from alseg.data.task import Task
from alseg.data.volumes import exact_voxels, save_nifti
from alseg.oracles.base import Propose
from alseg.run.folder import (
    ANSWERS_FILE,
    ANSWERS_FOLDER,
    CLASS_NAMES_FILE,
    PROPOSALS_FOLDER,
    REQUEST_README,
    REQUEST_TABLE,
    REQUESTS_FOLDER,
    UNCERTAINTY_FOLDER,
    request_folder,
)
from alseg.run.requests import Item, Request, proposal_file, read_request, write_request
from alseg.system.distributed import rank, wait_for_all
from alseg.system.files import checksum_of, clean_temporaries, replacing, write_atomically

# of the classes in ITK-SNAP, as it has them itself; the background has none
_COLOURS = (
    (0, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255),
)  # fmt: skip


def lay_out(
    task: Task,
    run_folder: Path,
    request: Request,
    propose: Propose | None = None,
) -> None:
    """Write the folder of a request: images, proposals, uncertainty maps, and its tables at last.

    What a process that was killed has left of it is written again; answers are left as they are.

    Args:
        task: the data set.
        run_folder: the run's.
        request: what is asked for; proposals and names of images are filled in.
        propose: makes the proposals and the maps; None for none.
    """
    folder = request_folder(run_folder, request.name)
    if rank() == 0:
        for part in ("", PROPOSALS_FOLDER, ANSWERS_FOLDER, UNCERTAINTY_FOLDER):
            (folder / part).mkdir(parents=True, exist_ok=True)
            clean_temporaries(folder / part)
    wait_for_all()
    if propose is not None:
        propose(tuple(item.unit for item in request.items), folder)
    wait_for_all()
    if rank() == 0:
        items, left_over = [], labels_left_over(run_folder)
        for item in request.items:
            case_id = item.unit.case_id
            images = lay_out_images(task, case_id, folder)
            proposal = checksum_of(proposal_file(run_folder, request.name, case_id))
            left = checksum_of(left_over[case_id]) if case_id in left_over else ""
            items.append(Item(item.unit, item.score, images, proposal, left))
        request, classes = replace(request, items=tuple(items)), values_of_labels(task)
        write_atomically(folder / REQUEST_README, readme_of(request, classes))
        write_atomically(folder / CLASS_NAMES_FILE, label_descriptions(classes))
        write_request(run_folder, request, classes)
    wait_for_all()


def values_of_labels(task: Task) -> dict[int, str]:
    """What each value means that a label may hold, the background first."""
    classes = dict(enumerate(task.classes))
    if task.ignore_value is not None:
        classes[task.ignore_value] = "ignored: a voxel that is left out"
    return classes


def label_descriptions(classes: Mapping[int, str]) -> str:
    """The classes as ITK-SNAP reads them: value, red, green, blue, opacity, two flags, name.

    Args:
        classes: the name of each value that a label may hold.
    """
    lines = []
    for number, (value, name) in enumerate(classes.items()):
        red, green, blue = _COLOURS[number % len(_COLOURS)] if value else (0, 0, 0)
        shown = int(value > 0)  # in the planes, and in 3D
        text = " ".join(name.replace('"', "'").split())
        lines.append(f'{value} {red} {green} {blue} {shown} {shown} {shown} "{text}"\n')
    return "".join(lines)


def readme_of(request: Request, classes: Mapping[int, str]) -> str:
    """What whoever annotates has to know, as plain text.

    Args:
        request: what is asked for.
        classes: the name of each value that a label may hold.
    """
    n_volumes = len(request.items)
    first = request.items[0].unit.case_id
    several = " (one file a channel)" if len(request.items[0].images) > 1 else ""
    proposed = (
        f"Begin with the proposed segmentation {PROPOSALS_FOLDER}/{first}.nii.gz, and leave that "
        "file as it is.\n"
        if any(item.proposal for item in request.items)
        else ""
    )
    values = "".join(f"  {value} = {name}\n" for value, name in classes.items())
    return (
        f"{n_volumes} {'volume waits' if n_volumes == 1 else 'volumes wait'} for annotation; "
        f"{REQUEST_TABLE} lists them, the most useful first.\n\n"
        f"For each of them, such as {first}:\n"
        f"open {', '.join(request.items[0].images)}{several}.\n{proposed}"
        f"Save the label as {ANSWERS_FOLDER}/{first}.nii.gz, on the image's own grid.\n\n"
        f"Values in a label:\n{values}\n"
        f"If you like, say who made a label, and in how many minutes, in {ANSWERS_FOLDER}/"
        f"{ANSWERS_FILE}.\nIts first line is case,annotator,minutes; then comes a line for each "
        "volume, with the minutes that it has taken in all.\n"
    )


def labels_left_over(run_folder: Path) -> dict[str, Path]:
    """The label files in all request folders, by case, used or not."""
    files = sorted((run_folder / REQUESTS_FOLDER).glob(f"*/{ANSWERS_FOLDER}/*"))
    return {
        name_without_ending(path): path
        for path in files
        if path.name.endswith(ANSWER_ENDINGS) and path.is_file() and not path.is_symlink()
    }


def lay_out_images(task: Task, case_id: str, folder: Path) -> tuple[str, ...]:
    """Link the images of a case into a folder, or copy them where there are no links.

    Those that are not NIfTI files are converted, so that all programs and the labels that come back
    have to do with NIfTI only.

    Returns:
        Their names there: the case's, for several files with a number for each channel.
    """
    images, names = task.cases[case_id].images, []
    for channel, image in enumerate(images):
        ending = ending_of(image) if ending_of(image) in NIFTI_ENDINGS else NIFTI_ENDINGS[0]
        number = f"_{channel:04d}" if len(images) > 1 else ""
        path = folder / f"{case_id}{number}{ending}"
        names.append(path.name)
        if path.exists():
            continue
        if image.suffix in ITK_ENDINGS:
            save_nifti(path, *exact_voxels(image))
            continue
        path.unlink(missing_ok=True)  # a link to what has moved away
        try:
            path.symlink_to(image.resolve())
        except OSError:
            with replacing(path) as copy, image.open("rb") as source:
                shutil.copyfileobj(source, copy)
    return tuple(names)


def place_for(run_folder: Path, name: str, query: Query) -> tuple[str, Request | None]:
    """The name for a request, and the request if it has been laid out already.

    A round that starts again with other settings may have another query: it gets a folder of its
    own beside the first one's.
    """
    free, number = name, 1
    while (earlier := read_request(run_folder, free)) is not None:
        if earlier.query == query:
            return free, earlier
        number += 1
        free = f"{name}_{number}"
    return free, None


def request_for(
    name: str, query: Query, known: Mapping[str, object], scores: Mapping[str, float]
) -> Request:
    """What has to be asked for: the units of a query whose case has no label yet."""
    items = [
        Item(unit, scores.get(unit.case_id), ()) for unit in query if unit.case_id not in known
    ]
    return Request(name, query, tuple(items))
