"""The metrics of one class: by hand, against distance transforms, and where a mask is empty."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from alseg.core.errors import DataError
from alseg.core.metric_names import DICE, HD95, SURFACE_DICE
from alseg.training.class_metrics import VoxelSize, class_metrics
from alseg.training.evaluation import Evaluation
from alseg.training.metrics import CaseMetrics

ALL = (DICE, SURFACE_DICE, HD95)
ANISOTROPIC = VoxelSize((0.7, 3.0, 1.3), 50.0)


def masks(*voxels: tuple[int, int, int]) -> torch.Tensor:
    mask = torch.zeros(6, 7, 8, dtype=torch.bool)
    for place in voxels:
        mask[place] = True
    return mask


def metrics_of(predicted: torch.Tensor, label: torch.Tensor, tolerance: float) -> dict[str, float]:
    found = class_metrics(
        predicted, label, ALL, absent_counts=False, tolerance_mm=tolerance, size=ANISOTROPIC
    )
    assert not found.is_undefined
    return found.values


@pytest.mark.parametrize(
    ("moved", "distance"), [((3, 2, 2), 0.7), ((2, 3, 2), 3.0), ((2, 2, 3), 1.3)]
)
def test_a_voxel_that_is_off_by_one_is_off_by_its_edge(
    moved: tuple[int, int, int], distance: float
) -> None:
    there = masks((2, 2, 2))
    found = metrics_of(masks(moved), there, distance + 1e-3)
    assert found == pytest.approx({DICE: 0.0, SURFACE_DICE: 1.0, HD95: distance})
    assert metrics_of(masks(moved), there, distance - 1e-3)[SURFACE_DICE] == 0
    assert metrics_of(there, there, 0.1) == pytest.approx({DICE: 1, SURFACE_DICE: 1, HD95: 0})


def surface(mask: np.ndarray) -> np.ndarray:
    found: np.ndarray = mask & ~binary_erosion(mask)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_distances_are_those_of_distance_transforms(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, predicted = (gaussian_filter(rng.normal(size=(14, 9, 11)), 1.4) > 0.05 for _ in "ab")
    edges = VoxelSize((0.7, 3.0, 1.3), 99.0).spacing_mm
    a, b = surface(predicted), surface(label)
    to_label = distance_transform_edt(~b, sampling=edges)[a]
    to_prediction = distance_transform_edt(~a, sampling=edges)[b]
    tolerance = 1.0
    near = (to_label <= tolerance).sum() + (to_prediction <= tolerance).sum()
    found = metrics_of(torch.from_numpy(predicted), torch.from_numpy(label), tolerance)
    assert found[SURFACE_DICE] == pytest.approx(near / (a.sum() + b.sum()))
    assert found[HD95] == pytest.approx(
        max(np.percentile(to_label, 95), np.percentile(to_prediction, 95)), rel=1e-5
    )
    both = (predicted & label).sum()
    assert found[DICE] == pytest.approx(2 * both / (predicted.sum() + label.sum()))


@pytest.mark.parametrize("absent_counts", [False, True])
def test_a_class_that_is_missed_has_the_worst_values_and_no_distance(absent_counts: bool) -> None:
    found = class_metrics(
        masks(), masks((1, 1, 1)), ALL, absent_counts=absent_counts, size=ANISOTROPIC
    )
    assert found.values == {DICE: 0.0, SURFACE_DICE: 0.0, HD95: 50.0}
    assert found.is_undefined


def test_a_class_that_the_reference_does_not_have_counts_if_it_is_to() -> None:
    invented, absent = masks((1, 1, 1)), masks()
    for predicted in (invented, absent):
        found = class_metrics(predicted, absent, ALL, absent_counts=False, size=ANISOTROPIC)
        assert all(math.isnan(value) for value in found.values.values())
        assert not found.is_undefined
    wrong = class_metrics(invented, absent, ALL, absent_counts=True, size=ANISOTROPIC)
    assert wrong.values == {DICE: 0.0, SURFACE_DICE: 0.0, HD95: 50.0}
    assert wrong.is_undefined
    right = class_metrics(absent, absent, ALL, absent_counts=True, size=ANISOTROPIC)
    assert right.values == {DICE: 1.0, SURFACE_DICE: 1.0, HD95: 0.0}
    assert not right.is_undefined


def test_the_diagonal_is_that_of_the_box_whatever_way_its_axes_run() -> None:
    angle = 0.4
    turned = np.array(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, -1]]
    )
    affine = torch.eye(4)
    affine[:3, :3] = torch.from_numpy(turned @ np.diag([1.0, 1.0, 2.0]))
    size = VoxelSize.of(affine, (240, 240, 155), "brain")
    assert size.spacing_mm == pytest.approx((1, 1, 2), rel=1e-6)
    assert VoxelSize.of(torch.eye(4), (240, 240, 155), "brain").diagonal_mm == pytest.approx(
        373.13, abs=0.01
    )
    affine[0, 1] += 0.3  # sheared
    with pytest.raises(DataError, match="axes of brain are not perpendicular"):
        VoxelSize.of(affine, (9, 9, 9), "brain")


def test_ignored_voxels_and_classes_that_nobody_annotated_count_for_nothing() -> None:
    cases = CaseMetrics(["a", "b"], Evaluation(metrics=ALL, absent="zero"))
    label = torch.zeros(1, 1, 4, 5, 6, dtype=torch.int8)
    label[..., :2] = 1
    label[:, :, 3] = -1
    prediction = label.clone()
    prediction[:, :, 3] = 2  # only where nobody annotated
    cases.update("known", prediction, label, torch.eye(4))
    assert cases.rows["known"] == [1, 1, 1, 1, 0, 0, 0]
    label[:, :, 0, 0, 5] = 0
    prediction[:, :, 0, 0, 5] = 2
    cases.update("wrong", prediction, label, torch.eye(4))
    diagonal = math.hypot(4, 5, 6)
    assert cases.rows["wrong"] == pytest.approx([1, 0, 1, 0, 0, diagonal, 1])
    annotated = torch.tensor([True, True, False])
    cases.update("partly", prediction, label, torch.eye(4), annotated)
    assert cases.rows["partly"] == pytest.approx(
        [1, math.nan, 1, math.nan, 0, math.nan, 0], nan_ok=True
    )
    assert cases.by_class(HD95) == pytest.approx({"a": 0, "b": diagonal / 2})
    assert cases.mean(SURFACE_DICE) == pytest.approx(0.75)
    assert cases.n_undefined_hd95 == 1
    assert cases.table()["undefined_hd95"].tolist() == [0, 1, 0]
