"""Taking in a label that somebody has made: checked, copied and entered into the history."""

from __future__ import annotations

import gzip
from functools import partial
from pathlib import Path

import torch

from alseg.core.errors import DataError
from alseg.data.file_types import NIFTI_ENDINGS
from alseg.data.task import Task
from alseg.data.volumes import write_nifti
from alseg.oracles.annotations import Annotation, Annotations
from alseg.oracles.label_checks import Checked, check_annotation
from alseg.strategies.statistics import class_dtype
from alseg.system.files import checksum, checksum_of, replacing


def accept(
    task: Task,
    annotations: Annotations,
    case_id: str,
    path: Path,
    *,
    proposal: Path | None = None,
    confirmed: bool = False,
    annotator: str = "",
    minutes: float | None = None,
    request: str = "",
    folder: str = "",
) -> tuple[Annotation, str]:
    """Check a label and make it the newest version for its case; the file itself is left as it is.

    Args:
        task: the data set.
        annotations: where it is entered.
        case_id: the case.
        path: the label file, wherever it comes from.
        proposal: what was proposed, if anything was.
        confirmed: whether an empty label, or an unchanged proposal, is meant.
        annotator: who made it.
        minutes: that the volume has taken so far.
        request: what it answers.
        folder: the name of the request folder that it was handed in to.

    Returns:
        The version, and what was tolerated of it, if anything was.

    Raises:
        DataError: if it cannot be used, as ``check_annotation`` says, or changes meanwhile.
        StorageError: if it cannot be kept.
    """
    before = checksum_of(path)
    checked = check_annotation(task, case_id, path, proposal, confirmed=confirmed)
    content = path.read_bytes()
    if checksum(content) != before:
        raise DataError(f"{path} has changed while it was read; it is looked at again")
    if checked.is_exact and path.name.endswith(NIFTI_ENDINGS):
        write = partial(_write_copy, content, path.suffix == ".gz")
    else:
        write = partial(_write_on_grid, task, case_id, checked)
    added = annotations.add(
        case_id,
        write,
        received=before,
        annotator=annotator,
        minutes=minutes,
        request=request,
        folder=folder,
        proposal_dice=checked.proposal_dice,
    )
    return added, checked.note


def _write_copy(content: bytes, is_compressed: bool, path: Path) -> None:
    with replacing(path) as file:
        file.write(content if is_compressed else gzip.compress(content, mtime=0))


def _write_on_grid(task: Task, case_id: str, checked: Checked, path: Path) -> None:
    classes, ignored = torch.from_numpy(checked.classes), task.ignore_value
    if ignored is not None:  # as the data set's own labels have it
        classes = classes.masked_fill(classes < 0, ignored)
    n_values = max(len(task.classes), (ignored or 0) + 1)
    write_nifti(path, classes.to(class_dtype(n_values)), like=task.cases[case_id].images[0])
