"""Looks at a whole data set ahead of a run: what cannot be used, and what is odd."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import nibabel
import numpy as np

from alseg.data.cases import check_image_headers, check_label_header
from alseg.data.preprocess import VolumeCache
from alseg.errors import AlsegError

MAX_ANISOTROPY = 3.0  # largest to smallest voxel edge
MAX_FACTOR = 2.0  # from the median of the data set, along any axis


@dataclass(frozen=True)
class Finding:
    """Something to know about a case: ``level`` is error or warning, ``kind`` a word or two."""

    level: str
    kind: str
    message: str


@dataclass(frozen=True)
class Facts:
    """What a look at a case has shown.

    Attributes:
        size_mm: [3] edges of the image.
        spacing_mm: [3] edges of a voxel.
        direction: [3, 3] unit vectors of the image's axes, as columns.
        orientation: the axes' names, such as RAS.
        voxels: a hash of the preprocessed image.
        constant: whether the preprocessed image has but one intensity.
        classes: label values on the preprocessed grid.
        label_type: of the label's voxels in the file.
    """

    size_mm: np.ndarray
    spacing_mm: np.ndarray
    direction: np.ndarray
    orientation: str
    voxels: str
    constant: bool
    classes: tuple[int, ...]
    label_type: np.dtype


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
        label_header = check_label_header(case, case.label)
        stage = "image"
        image = cache.image(case_id)["image"].numpy()
        stage = "label"
        label = cache.label(case_id, case.label)
    except AlsegError as error:
        return Finding("error", stage, str(error))
    spacing = header.spacing_mm
    return Facts(
        size_mm=spacing * header.shape[:3],
        spacing_mm=spacing,
        direction=header.affine[:3, :3] / spacing,
        orientation="".join(nibabel.aff2axcodes(header.affine)),  # type: ignore[attr-defined]
        voxels=hashlib.sha256(image.tobytes()).hexdigest(),
        constant=bool(image.min() == image.max()),
        classes=tuple(int(value) for value in np.unique(label.numpy())),
        label_type=label_header.dtype,
    )


def oddities(facts: Mapping[str, Facts], classes: Sequence[str]) -> dict[str, list[Finding]]:
    """What is odd about each case, by itself and against the others.

    Args:
        facts: of all cases that can be used, by id.
        classes: the class names by label value.
    """
    if not facts:
        return {}
    spacing = np.median([f.spacing_mm for f in facts.values()], axis=0)
    size = np.median([f.size_mm for f in facts.values()], axis=0)
    (usual, _), *_ = Counter(f.orientation for f in facts.values()).most_common(1)
    first = {f.voxels: case_id for case_id, f in reversed(list(facts.items()))}

    def of(case_id: str, case: Facts) -> Iterator[tuple[str, str]]:
        missing = [name for value, name in enumerate(classes) if value not in case.classes]
        if len(missing) == len(classes) - 1 and classes[0] not in missing:
            yield "empty label", "its label holds no foreground"
        elif missing:
            yield "class missing", f"its label holds no {', '.join(missing)}"
        if case.constant:
            yield "constant", "all its voxels have one intensity after preprocessing"
        if first[case.voxels] != case_id:
            yield "twin", f"its image is the same as {first[case.voxels]}'s"
        if case.spacing_mm.max() > MAX_ANISOTROPY * case.spacing_mm.min():
            yield "anisotropic", f"its voxels measure {_mm(case.spacing_mm)}"
        if _far(case.spacing_mm, spacing):
            yield "spacing", f"its voxels measure {_mm(case.spacing_mm)}, the median {_mm(spacing)}"
        if _far(case.size_mm, size):
            yield "size", f"it measures {_mm(case.size_mm)}, the median {_mm(size)}"
        if case.orientation != usual:
            yield "orientation", f"its axes run {case.orientation}, most cases' {usual}"
        if not np.allclose(case.direction.T @ case.direction, np.eye(3), atol=1e-3):
            yield "sheared", "its axes are not at right angles to each other"
        if case.label_type.kind == "f":
            yield "label type", f"its label holds whole numbers as {case.label_type}"

    return {
        case_id: [Finding("warning", kind, message) for kind, message in of(case_id, case)]
        for case_id, case in facts.items()
    }


def _far(values: np.ndarray, median: np.ndarray) -> bool:
    return bool((np.maximum(values / median, median / values) > MAX_FACTOR).any())


def _mm(edges: np.ndarray) -> str:
    return " x ".join(f"{edge:.3g}" for edge in edges) + " mm"
