"""Looks at a whole data set: what cannot be used, and what is odd."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import nibabel
import numpy as np

from alseg.core.counts import counted
from alseg.core.errors import AlsegError
from alseg.data.cache import VolumeCache, axis_findings
from alseg.data.findings import Finding, listed, warning
from alseg.data.headers import check_image_headers, check_label_header, label_of
from alseg.data.splits import Splits, shared_groups
from alseg.data.task import Case, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelFacts:
    """What a look at a label has shown.

    Attributes:
        classes: classes on the preprocessed grid.
        classes_in_file: classes in the file.
        voxels: a hash of the label on the preprocessed grid.
        dtype: of the label's voxels in the file.
        ignored_share: of the voxels on the preprocessed grid, those that nobody annotated.
        not_annotated: classes that the data set says nobody annotated in this case.
    """

    classes: tuple[int, ...]
    classes_in_file: tuple[int, ...]
    voxels: str
    dtype: np.dtype
    ignored_share: float = 0.0
    not_annotated: tuple[int, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What a look at a case has shown.

    Attributes:
        header: what the image's header leaves open or says twice and differently.
        size_mm: [3] edges of the image.
        spacing_mm: [3] edges of a voxel.
        direction: [3, 3] unit vectors of the image's axes, as columns.
        orientation: the axes' names, such as RAS.
        grids: the image's shape before and after preprocessing.
        quantiles: [channels, 3] intensities in the file, the 5th, 50th and 95th percentile.
        voxels: a hash of the preprocessed image.
        constant: whether the preprocessed image has only one intensity.
        label: what its label has shown; None for a case without one.
    """

    header: tuple[Finding, ...]
    size_mm: np.ndarray
    spacing_mm: np.ndarray
    direction: np.ndarray
    orientation: str
    grids: tuple[tuple[int, ...], tuple[int, ...]]
    quantiles: np.ndarray
    voxels: str
    constant: bool
    label: LabelFacts | None


def look_at(cache: VolumeCache, case_id: str) -> Facts | Finding:
    """Run a case through all that training does with it before the first step.

    The checks are training's own, and what it preprocesses stays in the cache for the run.

    Returns:
        The facts; or, of a case that cannot be used, why.
    """
    case = cache.task.cases[case_id]
    stage = "header"
    try:
        header = check_image_headers(cache.task, case)
        label_type = None if case.label is None else check_label_header(case, case.label).dtype
        stage = "image"
        entry = cache.image(case_id)
        image = entry["image"].numpy()
        stage = "label"
        label = None if label_type is None else _look_at_label(cache, case, label_type)
    except AlsegError as error:
        return Finding("error", stage, str(error))
    spacing = header.spacing_mm
    return Facts(
        header=header.findings,
        size_mm=spacing * header.shape[:3],
        spacing_mm=spacing,
        direction=header.affine[:3, :3] / spacing,
        orientation="".join(nibabel.aff2axcodes(header.affine)),  # type: ignore[attr-defined]
        grids=(header.shape[:3], image.shape[1:]),
        quantiles=entry["source_quantiles"].numpy(),
        voxels=hashlib.sha256(image.tobytes()).hexdigest(),
        constant=bool(image.min() == image.max()),
        label=label,
    )


def _look_at_label(cache: VolumeCache, case: Case, dtype: np.dtype) -> LabelFacts:
    path = label_of(case)
    label = cache.label(case.id, path).numpy()
    return LabelFacts(
        classes=tuple(int(value) for value in np.unique(label) if value >= 0),
        classes_in_file=cache.classes_in_file(case.id, path),
        voxels=hashlib.sha256(label.tobytes()).hexdigest(),
        dtype=dtype,
        ignored_share=float((label < 0).mean()),
        not_annotated=cache.task.not_annotated(case.id),
    )


def set_findings(cache: VolumeCache, facts: Mapping[str, Facts]) -> list[Finding]:
    """What is to know about a data set as a whole.

    Args:
        cache: its task and its preprocessing.
        facts: of all cases that can be used, by id.
    """
    found = [*cache.task.findings, *left_out(cache.task), *axis_findings(cache.transforms)]
    labels = [case.label for case in facts.values() if case.label is not None]
    held = {value for label in labels for value in label.classes_in_file}
    never = [name for value, name in enumerate(cache.task.classes) if value not in held]
    if labels and never:
        found.append(warning("class never seen", f"no label holds {', '.join(never)}"))
    return [*found, *notes(cache.task, facts)]


def notes(task: Task, facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """What the data set says was not annotated."""
    labels = [case.label for case in facts.values() if case.label is not None]
    ignored = [label.ignored_share for label in labels if label.ignored_share > 0]
    if ignored:
        yield Finding(
            "note",
            "ignored voxels",
            f"{len(ignored)} of {len(labels)} labels ignore voxels, {min(ignored):.2%} to "
            f"{max(ignored):.2%} of theirs; no loss or metric looks at them",
        )
    for value, name in enumerate(task.classes):
        n_lacking = sum(value in label.not_annotated for label in labels)
        if n_lacking:
            yield Finding(
                "note",
                "class not annotated",
                f"{name} was not annotated in {n_lacking} of {len(labels)} cases, whose loss and "
                "Dice leave it out",
            )


def left_out(task: Task) -> list[Finding]:
    """The cases that a simulation cannot use, as nobody has labelled them."""
    names = task.unlabelled
    if not names:
        return []
    return [
        warning(
            "no label",
            f"{counted(len(names), 'case')} without a label, left out of the simulation: "
            f"{listed(names)}; oracle=person can ask for them",
        )
    ]


def nothing_annotated(case_ids: Sequence[str], left_out_of: str) -> list[Finding]:
    """The cases of some parts whose labels ignore all of their voxels."""
    if not case_ids:
        return []
    labels = counted(len(case_ids), "label ignores all of its", "labels ignore all of their")
    cases = "its case is" if len(case_ids) == 1 else "their cases are"
    return [
        warning(
            "nothing annotated",
            f"{labels} voxels, and {cases} left out of {left_out_of}: {listed(case_ids)}",
        )
    ]


def warn(
    cache: VolumeCache,
    splits: Splits,
    headers: Mapping[str, Sequence[Finding]],
    unanswerable: Sequence[str] = (),
    unjudged: Sequence[str] = (),
    *,
    simulated: bool,
) -> None:
    """Log what can be known before an image is read; ``alseg.validate`` reports more.

    Args:
        cache: the data set and its preprocessing.
        splits: which cases train, validate and test.
        headers: findings of the headers, by case.
        unanswerable: cases that are left out of the pool.
        unjudged: cases that are left out of validation and test.
        simulated: whether cases without a label are left out.
    """
    unused = left_out(cache.task) if simulated else []
    unused += nothing_annotated(unanswerable, "the pool of the simulation")
    unused += nothing_annotated(unjudged, "validation and test")
    shared = shared_groups(splits)
    for finding in [*cache.task.findings, *unused, *shared, *axis_findings(cache.transforms)]:
        log.warning(f"warning: data set: {finding.message}")
    by_kind: dict[str, dict[str, str]] = defaultdict(dict)
    for case_id, findings in sorted(headers.items()):
        for finding in findings:
            by_kind[finding.kind][case_id] = finding.message
    for kind, messages in by_kind.items():
        first, message = next(iter(messages.items()))
        log.warning(
            f"warning: data set: {kind} in {counted(len(messages), 'case')} "
            f"({listed(list(messages))}); of {first}: {message}"
        )
