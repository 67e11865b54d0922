"""Checks of a case's files by their headers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from alseg.core.counts import counted
from alseg.core.errors import DataError
from alseg.data.findings import Finding
from alseg.data.task import Case, Task
from alseg.data.volumes import Header, read_header


def check_headers(
    task: Task, case_ids: Iterable[str], *, labels: bool
) -> dict[str, tuple[Finding, ...]]:
    """Check files from their headers only.

    Args:
        task: the data set.
        case_ids: the cases to check.
        labels: whether to open the label files too; not for cases whose label is hidden.

    Returns:
        What the image header of each case leaves open or says twice and differently.

    Raises:
        DataError: naming the first file that is unreadable or does not fit, or a case without the
            label that is to be opened.
    """
    findings: dict[str, tuple[Finding, ...]] = {}
    for case_id in case_ids:
        case = task.cases[case_id]
        findings[case_id] = check_image_headers(task, case).findings
        if labels:
            check_label_header(case, label_of(case))
    return findings


def label_of(case: Case) -> Path:
    """The label file of a case that needs one.

    Raises:
        DataError: if the data set has none.
    """
    if case.label is None:
        raise DataError(f"the case {case.id} ({case.images[0]}) has no label in the data set")
    return case.label


def check_image_headers(task: Task, case: Case) -> Header:
    """Check that the images of a case are readable NIfTI on one grid, with the task's channels.

    Returns:
        The header of the first image.

    Raises:
        DataError: naming the file that is not.
    """
    first = read_header(case.images[0])
    # either one file with all channels or one file a channel
    n_channels = len(task.channels) if len(case.images) == 1 else 1
    if first.n_channels != n_channels:
        raise DataError(
            f"{case.images[0]} has shape {first.shape}; a 3D volume with "
            f"{counted(n_channels, 'channel')} is needed"
        )
    for path in case.images[1:]:
        other = read_header(path)
        if other.shape != first.shape:
            raise DataError(
                f"{path} has shape {other.shape}, but {case.images[0]} has {first.shape}"
            )
        _check_same_grid(path, other, case.images[0], first)
    return first


def check_label_header(case: Case, label: Path) -> Header:
    """Check that a label file is readable NIfTI on the grid of its image.

    Returns:
        The header of the label.

    Raises:
        DataError: if it is not.
    """
    header, image = read_header(label), read_header(case.images[0])
    if header.shape[:3] != image.shape[:3] or header.n_channels != 1:
        raise DataError(
            f"label {label} has shape {header.shape}, but its image {case.images[0]} has "
            f"{image.shape[:3]}"
        )
    _check_same_grid(label, header, case.images[0], image)
    return header


def _check_same_grid(path: Path, header: Header, other: Path, reference: Header) -> None:
    # 1e-3 mm: headers store the affine in float32
    if np.allclose(header.affine, reference.affine, rtol=1e-5, atol=1e-3):
        return
    spacings = [[round(float(s), 4) for s in h.spacing_mm] for h in (header, reference)]
    what = (
        f"the spacing {spacings[0]} mm, but {other} has {spacings[1]} mm"
        if spacings[0] != spacings[1]
        else f"another direction or origin than {other}"
    )
    raise DataError(f"{path} has {what}; they must lie on one grid")
