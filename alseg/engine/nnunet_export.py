"""Writes what is annotated in a run as a raw data set of nnU-Net v2.

Training cases with all they have of labels by now go to ``imagesTr`` and ``labelsTr``, all others
to ``imagesTs``. Labels that the run has not revealed are not opened.

Source: nnU-Net's description of its raw data sets,
https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md and, for what is not
annotated, ignore_label.md beside it.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig

from alseg import __version__
from alseg.config.data_of_run import task_of_run
from alseg.config.settings import load_config
from alseg.core.counts import counted
from alseg.core.errors import ConfigError, DataError, check_flag, check_names, check_text
from alseg.core.pool import Pool
from alseg.core.units import IGNORED, Unit
from alseg.data.annotation import Annotation, as_annotations
from alseg.data.findings import listed
from alseg.data.formats.nnunet import IGNORE
from alseg.data.headers import check_image_headers, check_label_header, label_of
from alseg.data.labels import read_label
from alseg.data.task import Case, Task
from alseg.data.volumes import as_int16_if_exact, read_header, read_volume, write_nifti
from alseg.engine.new_folder import check_new, new_folder
from alseg.oracles.annotations import Annotations
from alseg.run.folder import CONFIG_FILE
from alseg.run.state import RunState
from alseg.system.console import say, track
from alseg.system.files import replacing, write_atomically

ENDING = ".nii.gz"
DATASET = re.compile(r"Dataset\d{3}_[A-Za-z0-9_.-]+")  # how nnU-Net calls the folder of a data set
CASES_TABLE = "case_names.csv"  # which case of the run each file is

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """A case on its way to nnU-Net.

    Attributes:
        case: with its images.
        name: of its files there.
        annotation: what may be read of its label; None for nothing.
    """

    case: Case
    name: str
    annotation: Annotation | None

    @property
    def annotated(self) -> str:
        """What of it is annotated, for a table: ``whole``, its regions, or nothing."""
        if self.annotation is None:
            return ""
        regions = self.annotation.regions
        return "whole" if regions is None else "; ".join(str(Unit("", r).where) for r in regions)


def export_for_nnunet(config: DictConfig) -> Path:
    """Write the data set that conf/export.yaml describes, and say how nnU-Net takes it.

    Returns:
        The folder of the data set, ``DatasetXXX_NAME``.

    Raises:
        AlsegError: with one clear sentence, if nothing is annotated, a file cannot be used, or the
            folder holds something.
    """
    check_text("run", config.run)
    check_text("nnunet", config.nnunet)
    check_names("trusted_packages", config.trusted_packages)
    check_flag("unlabelled_images", config.unlabelled_images)
    if config.round is not None:
        raise ConfigError("round is for bundle; nnunet writes all that is annotated by now")
    run, given = Path(config.run).expanduser().absolute(), Path(config.nnunet).expanduser()
    check_new("nnunet", given)
    if not (run / CONFIG_FILE).is_file():
        raise DataError(f"{run} is no run folder: it has no {CONFIG_FILE}")
    task = task_of_run(run, load_config(run), config.trusted_packages)
    class_names(task)  # refuses those that nnU-Net cannot tell apart
    labels = annotated_labels(run, task)
    names = names_on_disk(task.cases)
    cases = [
        Exported(case, names[i], labels.get(i))
        for i, case in task.cases.items()
        if i in labels or config.unlabelled_images
    ]
    is_named = DATASET.fullmatch(given.name) is not None
    folder = given if is_named else given / dataset_name(task)
    with new_folder(folder) as temporary:
        not_finite = write_dataset(temporary, task, cases)
    report(folder, task, cases, not_finite)
    return folder


def annotated_labels(run_folder: Path, task: Task) -> dict[str, Annotation]:
    """What may be read of the labels of a run: those of its pool, and all that people have made.

    Cases that only validate or test are not among them.

    Raises:
        DataError: if nothing is annotated yet, or a label is missing or damaged.
    """
    pool = RunState.load(run_folder).pool if RunState.is_in(run_folder) else Pool((), ())
    if gone := [i for i in pool.labelled if i not in task.cases]:
        raise DataError(f"{task.root} no longer has {listed(gone)} of the run in {run_folder}")
    history = Annotations(run_folder)
    made = {i: history.path(each) for i, each in history.newest().items() if i in task.cases}
    known = {i: label_of(task.cases[i]) for i in pool.labelled if i not in made}
    if not made and not known:
        raise DataError(f"nothing has been annotated yet in the run in {run_folder}")
    return as_annotations(made | known, pool)


def write_dataset(folder: Path, task: Task, cases: Sequence[Exported]) -> list[str]:
    """Write images, labels, the table of the cases and, at last, dataset.json.

    Returns:
        The cases whose images hold voxels that are NaN or infinite.
    """
    rows, is_partial, n_labelled, not_finite = [], False, 0, []
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir()
    for each in track(cases, "Writing", "cases", len(cases)):
        part = "imagesTs" if each.annotation is None else "imagesTr"
        check_image_headers(task, each.case)
        if not write_images(folder / part, each, len(task.channels)):
            not_finite.append(each.case.id)
        if each.annotation is not None:
            label = folder / "labelsTr" / f"{each.name}{ENDING}"
            image = folder / part / f"{each.name}_0000{ENDING}"
            is_partial |= write_label(label, task, each.case, each.annotation, like=image)
            n_labelled += 1
        rows.append((each.case.id, f"{part}/{each.name}", each.annotated))
    table = pd.DataFrame(rows, columns=["case", "files", "annotated"])
    write_atomically(folder / CASES_TABLE, table.to_csv(index=False))
    content = description(task, n_labelled, is_partial=is_partial)
    write_atomically(folder / "dataset.json", json.dumps(content, indent=2))
    return not_finite


def write_images(folder: Path, each: Exported, n_channels: int) -> bool:
    """Write a file a channel: a copy where the case has such a file, else the voxels of one.

    Returns:
        Whether no voxel is NaN or infinite.
    """
    images, is_finite = each.case.images, True
    for channel in range(n_channels):
        path = folder / f"{each.name}_{channel:04d}{ENDING}"
        source = images[channel] if len(images) > 1 else images[0]
        voxels = read_volume((source,))[channel if len(images) == 1 else 0].numpy()
        is_finite &= bool(np.isfinite(voxels).all())
        if source.name.endswith(ENDING) and len(read_header(source).shape) == 3:
            with replacing(path) as copy, source.open("rb") as file:
                shutil.copyfileobj(file, copy)
            continue
        write_nifti(path, torch.from_numpy(as_int16_if_exact(voxels)), like=source)
    return is_finite


def write_label(path: Path, task: Task, case: Case, annotation: Annotation, *, like: Path) -> bool:
    """Write what is annotated of a label, on the grid of an image; the rest is ignored.

    Returns:
        Whether a voxel is ignored.
    """
    check_label_header(case, annotation.path)
    label = read_label(task, annotation.path, annotation.regions)[0].as_tensor()[0]
    ignored = label == IGNORED
    label[ignored] = len(task.classes)
    dtype = torch.uint8 if len(task.classes) < 256 else torch.int16
    write_nifti(path, label.to(dtype), like=like)
    return bool(ignored.any())


def description(task: Task, n_labelled: int, *, is_partial: bool) -> dict[str, object]:
    """The content of dataset.json.

    Args:
        task: the data set of the run.
        n_labelled: the cases in labelsTr.
        is_partial: whether voxels of them are ignored: their value stands behind all classes.
    """
    labels = {name: value for value, name in enumerate(["background", *class_names(task)])}
    if is_partial:
        labels[IGNORE] = len(task.classes)
    return {
        "channel_names": {str(index): name for index, name in enumerate(task.channels)},
        "labels": labels,
        "numTraining": n_labelled,
        "file_ending": ENDING,
        "name": task.name,
        "description": f"what was annotated in a run of alseg {__version__}",
    }


def class_names(task: Task) -> list[str]:
    """What the foreground classes are called there, where two names have a meaning.

    Raises:
        DataError: if two of them would have one name.
    """
    names = {f"{n} (class)" if n in (IGNORE, "background") else n: n for n in task.foreground}
    if len(names) < len(task.foreground):
        lost = next(name for name in task.foreground if names.get(f"{name} (class)", name) != name)
        raise DataError(
            f"{task.root} has the classes {lost!r} and '{lost} (class)', which is what {lost!r}, a "
            "name that nnU-Net keeps for itself, is exported as; rename one of them"
        )
    return list(names)


def dataset_name(task: Task) -> str:
    """The name of the folder for nnU-Net: the data set's own if it is one of nnU-Net's."""
    if DATASET.fullmatch(task.name):
        return task.name
    return f"Dataset001_{_plain(task.name)}"


def names_on_disk(case_ids: Iterable[str]) -> dict[str, str]:
    """A name for the files of each case: letters, digits, ``_``, ``-`` and ``.`` of ASCII.

    Names differ in more than the case of their letters, which some file systems do not tell apart.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    # those that stay as they are come first, so that no other one takes their name
    for case_id in sorted(case_ids, key=lambda i: (_plain(i) != i, i)):
        name, number = _plain(case_id), 1
        while name.casefold() in taken:
            number += 1
            name = f"{_plain(case_id)}-{number}"
        taken.add(name.casefold())
        names[case_id] = name
    return names


def _plain(name: str) -> str:
    """A name for a file, of few characters and not too long; never a hidden one."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:150]
    return plain if plain[:1].isalnum() else f"x{plain}"


def report(folder: Path, task: Task, cases: Sequence[Exported], not_finite: Sequence[str]) -> None:
    """Say what was written, and what nnU-Net will make of it."""
    annotated = [each for each in cases if each.annotation is not None]
    in_part = sum(each.annotation.regions is not None for each in annotated if each.annotation)
    parts = f", {in_part} of them in part," if in_part else ""
    n_others = len(cases) - len(annotated)
    volumes = f"{len(annotated)} annotated volume{'s' * (len(annotated) != 1)}"
    say(f"wrote {volumes}{parts} and {n_others} other{'s' * (n_others != 1)} to {folder}")
    if lacking := [each.case.id for each in annotated if task.not_annotated(each.case.id)]:
        log.warning(
            f"not all classes were annotated in {listed(lacking)}; nnU-Net knows no such cases and "
            "takes what was not annotated for background: leave them out, or draw these classes"
        )
    if not_finite:
        log.warning(
            f"images of {counted(len(not_finite), 'case')} hold voxels that are NaN or infinite: "
            f"{listed(not_finite)}; nnU-Net refuses such images: mend them, or leave the cases out"
        )
    raw, number = shlex.quote(str(folder.absolute().parent)), int(folder.name[7:10])
    say(
        f"for nnU-Net: nnUNet_raw={raw} nnUNetv2_plan_and_preprocess -d {number} "
        "--verify_dataset_integrity"
    )
