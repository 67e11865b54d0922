"""Looks at a whole data set: what cannot be used, and what is odd."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import nibabel
import numpy as np

from alseg.core.errors import AlsegError
from alseg.data.cache import VolumeCache, axis_findings
from alseg.data.findings import Finding, by, in_mm, listed, warning
from alseg.data.headers import check_image_headers, check_label_header, label_of
from alseg.data.task import Case, Task

log = logging.getLogger(__name__)

MAX_ANISOTROPY = 3.0  # largest to smallest voxel edge
MAX_FACTOR = 2.0  # from the median of the data set, along any axis
MAX_GRID_FACTOR = 10.0  # between the voxels along an axis before and after preprocessing
MIN_SHIFT = 0.5  # of intensities, in spreads from the 5th to the 95th percentile
MAX_SCALE = 4.0  # of that spread, from the median of the data set
OUTLYING = 5.0  # robust standard deviations
RARE = 0.1  # share of cases that may differ where a scale is the scanner's own


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


def oddities(
    facts: Mapping[str, Facts], classes: Sequence[str], channels: Sequence[str]
) -> dict[str, list[Finding]]:
    """What is odd about each case, by itself and against the others.

    Args:
        facts: of all cases that can be used, by id.
        classes: the class names by label value.
        channels: the channels' names; CT has a scale that all its scans share.
    """
    if not facts:
        return {}
    spacing = np.median([f.spacing_mm for f in facts.values()], axis=0)
    size = np.median([f.size_mm for f in facts.values()], axis=0)
    (usual, _), *_ = Counter(f.orientation for f in facts.values()).most_common(1)
    first = {f.voxels: case_id for case_id, f in reversed(list(facts.items()))}
    labels = {case_id: f.label for case_id, f in facts.items() if f.label is not None}
    first_label = {label.voxels: case_id for case_id, label in reversed(list(labels.items()))}
    others = intensity_oddities({c: f.quantiles for c, f in facts.items()}, channels)

    def of_label(case_id: str, label: LabelFacts) -> Iterator[tuple[str, str]]:
        expected = {*range(len(classes))} - {*label.not_annotated}
        missing = [classes[value] for value in sorted(expected - {*label.classes_in_file})]
        lost = [classes[value] for value in label.classes_in_file if value not in label.classes]
        if label.ignored_share == 1:
            yield "nothing annotated", "all voxels of its label are ignored"
        elif len(missing) == len(expected) - 1 and classes[0] not in missing:
            yield "empty label", "its label holds no foreground"
        elif missing:
            yield "class missing", f"its label holds no {', '.join(missing)}"
        if lost:
            yield "class lost", f"preprocessing leaves no voxel of {', '.join(lost)}"
        # one value everywhere is no shape that could be another case's
        if first_label[label.voxels] != case_id and len(label.classes) > 1:
            yield "twin label", f"its label is the same as {first_label[label.voxels]}'s"
        if label.dtype.kind == "f":
            yield "label type", f"its label holds whole numbers as {label.dtype}"

    def of(case_id: str, case: Facts) -> Iterator[tuple[str, str]]:
        if case.label is not None:
            yield from of_label(case_id, case.label)
        if case.constant:
            yield "constant", "all its voxels have one intensity after preprocessing"
        if first[case.voxels] != case_id:
            yield "twin", f"its image is the same as {first[case.voxels]}'s"
        if case.spacing_mm.max() > MAX_ANISOTROPY * case.spacing_mm.min():
            yield "anisotropic", f"its voxels measure {in_mm(case.spacing_mm)}"
        if _far(case.spacing_mm, spacing):
            yield (
                "spacing",
                f"its voxels measure {in_mm(case.spacing_mm)}, the median {in_mm(spacing)}",
            )
        if _far(case.size_mm, size):
            yield "size", f"it measures {in_mm(case.size_mm)}, the median {in_mm(size)}"
        if case.orientation != usual:
            yield "orientation", f"its axes run {case.orientation}, most cases' {usual}"
        if message := others.get(case_id):
            yield "intensities", message
        before, after = np.sort(case.grids, axis=1)  # whatever the order of axes
        if np.maximum(before / after, after / before).max() > MAX_GRID_FACTOR:
            yield "grid", f"preprocessing turns {by(case.grids[0])} voxels into {by(case.grids[1])}"
        if not np.allclose(case.direction.T @ case.direction, np.eye(3), atol=1e-3):
            yield "sheared", "its axes are not at right angles to each other"

    return {
        case_id: [*case.header, *(warning(kind, message) for kind, message in of(case_id, case))]
        for case_id, case in facts.items()
    }


def _far(values: np.ndarray, median: np.ndarray) -> bool:
    return bool((np.maximum(values / median, median / values) > MAX_FACTOR).any())


def intensity_oddities(
    quantiles: Mapping[str, np.ndarray], channels: Sequence[str]
) -> dict[str, str]:
    """Cases whose intensities are shifted or scaled against the others', and by how much.

    A shift, such as the 1024 of a CT that was stored without its rescale intercept, moves both ends
    of the intensities and leaves their spread. Both are judged from the medians over the cases, in
    robust standard deviations, so that a data set whose intensities vary anyway gives no findings.
    Only CT has a scale that all scans share; elsewhere a scale is told where nearly all share one.

    Args:
        quantiles: of each case, [channels, 3].
        channels: their names.
    """
    found: dict[str, str] = {}
    for channel, name in enumerate(channels):
        ends = np.array([q[channel, [0, -1]] for q in quantiles.values()])  # [cases, 2]
        spread = np.maximum(ends[:, 1] - ends[:, 0], np.finfo(np.float32).tiny)
        scale = np.log(spread / np.median(spread))
        moved = ends - np.median(ends, axis=0)
        shift = moved[
            np.arange(len(ends)), np.abs(moved).argmin(axis=1)
        ]  # of the end that did less
        shifted = (
            (moved.prod(axis=1) > 0)  # both ends the same way
            & (np.abs(scale) < np.log(2))
            & (np.abs(shift) > MIN_SHIFT * np.median(spread))
            & (np.abs(moved) > OUTLYING * _deviation(ends)).all(axis=1)
        )
        scaled = np.abs(scale) > np.maximum(np.log(MAX_SCALE), OUTLYING * _deviation(scale))
        if "ct" not in name.casefold() and scaled.mean() > RARE:
            scaled[:] = False
        usual = _interval(np.median(ends, axis=0))
        for case_id, end, distance, is_shifted, is_scaled in zip(
            quantiles, ends, shift, shifted, scaled, strict=True
        ):
            if is_shifted or is_scaled:
                how = f"shifted by about {distance:.4g}" if is_shifted else "on another scale"
                found[case_id] = (
                    f"its intensities ({name}) lie in {_interval(end)}, those of the others in "
                    f"{usual} (5th to 95th percentile): {how}"
                )
    return found


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
            f"{len(names)} case(s) have no label and are left out of the simulation: "
            f"{listed(names)}; oracle=person can ask for them",
        )
    ]


def warn(cache: VolumeCache, headers: Mapping[str, Sequence[Finding]], *, simulated: bool) -> None:
    """Tell a run what can be known before any voxel is read; ``alseg.validate`` tells more.

    Args:
        cache: the data set and its preprocessing.
        headers: findings of the headers, by case.
        simulated: whether cases without a label are left out.
    """
    unused = left_out(cache.task) if simulated else []
    for finding in [*cache.task.findings, *unused, *axis_findings(cache.transforms)]:
        log.warning(f"warning: data set: {finding.message}")
    by_kind: dict[str, dict[str, str]] = defaultdict(dict)
    for case_id, findings in sorted(headers.items()):
        for finding in findings:
            by_kind[finding.kind][case_id] = finding.message
    for kind, messages in by_kind.items():
        first, message = next(iter(messages.items()))
        log.warning(
            f"warning: data set: {kind} in {len(messages)} case(s) ({listed(list(messages))}); of "
            f"{first}: {message}"
        )


def _interval(ends: np.ndarray) -> str:
    return f"[{ends[0]:.4g}, {ends[1]:.4g}]"


def _deviation(values: np.ndarray) -> np.ndarray:
    """A robust standard deviation along the first axis: 1.4826 times the median absolute one."""
    return np.asarray(1.4826 * np.median(np.abs(values - np.median(values, axis=0)), axis=0))
