"""Checks of a label that somebody has made; where it comes from does not matter here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alseg.core.errors import DataError
from alseg.core.units import IGNORED
from alseg.data.findings import in_mm
from alseg.data.headers import check_label_header
from alseg.data.labels import read_label
from alseg.data.task import Case, Task
from alseg.data.volumes import Header, read_header

MAX_NOISE = 0.05  # voxel edges that a label may lie beside its image: headers round


class ConfirmationNeededError(DataError):
    """A label that is sound and looks like a mistake: it is taken once it has been confirmed."""


@dataclass(frozen=True)
class Checked:
    """A label that can be used.

    Attributes:
        classes: class indices, shape [D, H, W], ``IGNORED`` where the file has the ignore label.
        is_exact: whether it lies on its image's grid to the last digit that counts.
        note: what was tolerated; empty if nothing was.
        proposal_dice: mean Dice with the proposal over the foreground classes that either of them
            holds; None without a proposal.
    """

    classes: np.ndarray
    is_exact: bool
    note: str
    proposal_dice: float | None


def check_annotation(
    task: Task, case_id: str, path: Path, proposal: Path | None = None, *, confirmed: bool = False
) -> Checked:
    """Check the label that somebody has made for a case.

    Args:
        task: the data set.
        case_id: the case.
        path: the label file.
        proposal: the segmentation that was proposed for it; None if none was.
        confirmed: whether an empty label, or an unchanged proposal, is meant.

    Raises:
        ConfirmationNeededError: if the label is empty or the unchanged proposal, and not confirmed.
        DataError: if the file is broken, lies on another grid, or holds values of no class.
    """
    case = task.cases[case_id]
    note = grid_note(case, path)
    label, values = read_label(task, path)
    classes = label.numpy()[0].astype(np.int64)
    proposed = None if proposal is None else read_label(task, proposal)[0].numpy()[0]
    if not confirmed and not (values > 0).any():
        raise ConfirmationNeededError(
            f"{path} holds background only; if {', '.join(task.foreground)} are really not in this "
            "image, confirm it"
        )
    if not confirmed and proposed is not None and np.array_equal(classes, proposed):
        raise ConfirmationNeededError(
            f"{path} is the proposed segmentation without any change; if it is right as it is, "
            "confirm it"
        )
    dice = None if proposed is None else mean_dice(classes, proposed, len(task.classes))
    return Checked(classes, not note, note, dice)


def grid_note(case: Case, path: Path) -> str:
    """What is tolerated of a label's grid; empty if it is the image's.

    Raises:
        DataError: if it is another grid.
    """
    try:
        check_label_header(case, path)
    except DataError:
        label, image = read_header(path), read_header(case.images[0])
        if label.n_channels != 1 or label.shape[:3] != image.shape[:3]:
            raise
        distance = largest_shift(label, image)
        if not distance <= MAX_NOISE:
            raise
        return (
            f"{path} lies up to {distance:.2g} voxels beside its image (voxels of "
            f"{in_mm(image.spacing_mm)}); that is taken for rounding, and it is put on the image's "
            "grid"
        )
    return ""


def largest_shift(label: Header, image: Header) -> float:
    """The largest distance between the same corner of two grids, in the image's voxel edges."""
    last = np.array(image.shape[:3]) - 1
    corners = np.array(list(np.ndindex(2, 2, 2))) * last  # [8, 3]
    difference = label.affine - image.affine
    moved = corners @ difference[:3, :3].T + difference[:3, 3]
    return float(np.linalg.norm(moved, axis=1).max() / image.spacing_mm.min())


def mean_dice(label: np.ndarray, proposal: np.ndarray, n_classes: int) -> float | None:
    """Mean Dice 2|A∩B| / (|A|+|B|) over the foreground classes that either holds; None if none is.

    Voxels that the label ignores do not count.

    Args:
        label: class indices, shape [D, H, W].
        proposal: the same.
        n_classes: with the background.
    """
    scores = []
    for index in range(1, n_classes):
        a, b = label == index, (proposal == index) & (label != IGNORED)
        if n_voxels := int(a.sum() + b.sum()):
            scores.append(2 * int((a & b).sum()) / n_voxels)
    return float(np.mean(scores)) if scores else None
