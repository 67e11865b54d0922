"""What is odd about the cases of a data set, each by itself and against the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alseg.core.counts import by
from alseg.data.findings import Finding, in_mm, warning
from alseg.data.survey import Facts, LabelFacts

MAX_ANISOTROPY = 3.0  # largest to smallest voxel edge
MAX_FACTOR = 2.0  # from the median of the data set, along any axis
MAX_GRID_FACTOR = 10.0  # between the voxels along an axis before and after preprocessing
MIN_SHIFT = 0.5  # of intensities, in spreads from the 5th to the 95th percentile
MAX_SCALE = 4.0  # of that spread, from the median of the data set
OUTLYING = 5.0  # robust standard deviations
RARE = 0.1  # share of cases that may differ where a scale is the scanner's own


@dataclass(frozen=True)
class Usual:
    """What a case is compared with: the other cases of its data set.

    Attributes:
        spacing_mm: [3] the median edges of a voxel.
        size_mm: [3] the median edges of an image.
        orientation: of most images.
        first_image: the first case that has an image, by the image's hash.
        first_label: the same for labels.
        intensities: what is odd about the intensities of a case, by case.
    """

    spacing_mm: np.ndarray
    size_mm: np.ndarray
    orientation: str
    first_image: Mapping[str, str]
    first_label: Mapping[str, str]
    intensities: Mapping[str, str]

    @classmethod
    def of(cls, facts: Mapping[str, Facts], channels: Sequence[str]) -> Usual:
        """What is usual in a data set of at least one case."""
        (orientation, _), *_ = Counter(f.orientation for f in facts.values()).most_common(1)
        latest_first = list(facts.items())[::-1]
        return cls(
            spacing_mm=np.median([f.spacing_mm for f in facts.values()], axis=0),
            size_mm=np.median([f.size_mm for f in facts.values()], axis=0),
            orientation=orientation,
            first_image={f.voxels: case_id for case_id, f in latest_first},
            first_label={f.label.voxels: case_id for case_id, f in latest_first if f.label},
            intensities=intensity_oddities({c: f.quantiles for c, f in facts.items()}, channels),
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
    usual = Usual.of(facts, channels)
    found = {}
    for case_id, case in facts.items():
        odd = [
            *(_of_label(case_id, case.label, usual, classes) if case.label is not None else ()),
            *_of_image(case_id, case, usual),
        ]
        found[case_id] = [*case.header, *(warning(kind, message) for kind, message in odd)]
    return found


def _of_label(
    case_id: str, label: LabelFacts, usual: Usual, classes: Sequence[str]
) -> Iterator[tuple[str, str]]:
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
    if usual.first_label[label.voxels] != case_id and len(label.classes) > 1:
        yield "twin label", f"its label is the same as {usual.first_label[label.voxels]}'s"
    if label.dtype.kind == "f":
        yield "label type", f"its label holds whole numbers as {label.dtype}"


def _of_image(case_id: str, case: Facts, usual: Usual) -> Iterator[tuple[str, str]]:
    if case.constant:
        yield "constant", "all its voxels have one intensity after preprocessing"
    if usual.first_image[case.voxels] != case_id:
        yield "twin", f"its image is the same as {usual.first_image[case.voxels]}'s"
    if case.spacing_mm.max() > MAX_ANISOTROPY * case.spacing_mm.min():
        yield "anisotropic", f"its voxels measure {in_mm(case.spacing_mm)}"
    if _far(case.spacing_mm, usual.spacing_mm):
        yield (
            "spacing",
            f"its voxels measure {in_mm(case.spacing_mm)}, the median {in_mm(usual.spacing_mm)}",
        )
    if _far(case.size_mm, usual.size_mm):
        yield "size", f"it measures {in_mm(case.size_mm)}, the median {in_mm(usual.size_mm)}"
    if case.orientation != usual.orientation:
        yield "orientation", f"its axes run {case.orientation}, most cases' {usual.orientation}"
    if message := usual.intensities.get(case_id):
        yield "intensities", message
    before, after = np.sort(case.grids, axis=1)  # whatever the order of axes
    if np.maximum(before / after, after / before).max() > MAX_GRID_FACTOR:
        yield "grid", f"preprocessing turns {by(case.grids[0])} voxels into {by(case.grids[1])}"
    if not np.allclose(case.direction.T @ case.direction, np.eye(3), atol=1e-3):
        yield "sheared", "its axes are not at right angles to each other"


def _far(values: np.ndarray, median: np.ndarray) -> bool:
    return bool((np.maximum(values / median, median / values) > MAX_FACTOR).any())


def intensity_oddities(
    quantiles: Mapping[str, np.ndarray], channels: Sequence[str]
) -> dict[str, str]:
    """Cases whose intensities are shifted or scaled against the others', and by how much.

    A shift, such as the 1024 of a CT that was stored without its rescale intercept, moves both ends
    of the intensities and leaves their spread. Both are judged from the medians over the cases, in
    robust standard deviations, so that a data set whose intensities vary anyway gives no findings.
    Only CT has a scale that all scans share; elsewhere a scale is reported where nearly all share
    one.

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
                difference = (
                    f"shifted by about {distance:.4g}" if is_shifted else "on another scale"
                )
                found[case_id] = (
                    f"its intensities ({name}) lie in {_interval(end)}, those of the others in "
                    f"{usual} (5th to 95th percentile): {difference}"
                )
    return found


def _interval(ends: np.ndarray) -> str:
    return f"[{ends[0]:.4g}, {ends[1]:.4g}]"


def _deviation(values: np.ndarray) -> np.ndarray:
    """A robust standard deviation along the first axis: 1.4826 times the median absolute one."""
    return np.asarray(1.4826 * np.median(np.abs(values - np.median(values, axis=0)), axis=0))
