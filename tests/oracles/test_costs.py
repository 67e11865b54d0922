"""Annotation costs of hand-made labels, and the budget that they add up to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from alseg.core.errors import ConfigError, DataError
from alseg.core.units import Unit
from alseg.oracles.annotated_voxels import AnnotatedVoxels, annotated_units
from alseg.oracles.costs import COSTS, Effort, contents, contour_mm, cost_named


def label_of(folder: Path, spacing: tuple[float, float, float]) -> AnnotatedVoxels:
    """10 x 8 x 6 voxels with a box of 5 x 3 x 2, two classes."""
    classes = np.zeros((10, 8, 6), np.uint8)
    classes[2:7, 1:4, 3:5] = 1
    classes[2, 1, 3] = 2
    path = folder / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(classes, np.diag([*spacing, 1.0])), path)  # type: ignore[attr-defined]
    return AnnotatedVoxels.read(path)


@pytest.mark.parametrize(
    ("name", "expected"), [("volume", 1), ("voxels", 480), ("foreground_voxels", 30), ("slices", 2)]
)
def test_costs_by_hand(tmp_path: Path, name: str, expected: float) -> None:
    assert cost_named(name)(label_of(tmp_path, (1, 1, 3))) == expected


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [((1, 1, 1), 2), ((5, 1, 1), 5), ((1, 4, 1), 3), ((1, 1.005, 1.0), 2)],
)
def test_slices_lie_across_the_coarsest_axis(
    tmp_path: Path, spacing: tuple[float, float, float], expected: float
) -> None:
    assert COSTS["slices"](label_of(tmp_path, spacing)) == expected


def test_an_empty_label_costs_nothing_to_paint(tmp_path: Path) -> None:
    path = tmp_path / "empty.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), path)  # type: ignore[attr-defined]
    costs = {name: cost_named(name) for name in COSTS}
    assert {name: cost(AnnotatedVoxels.read(path)) for name, cost in costs.items()} == {
        "volume": 1,
        "voxels": 64,
        "foreground_voxels": 0,
        "slices": 0,
        "effort": 1.2,  # opened and confirmed
    }


def test_unknown_costs_and_broken_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hours"):
        cost_named("hours")
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no nifti")
    with pytest.raises(DataError, match=r"broken\.nii\.gz"):
        AnnotatedVoxels.read(broken)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("volume", 0.05),
        ("voxels", 24),
        ("foreground_voxels", 9),
        ("slices", 1),
        ("effort", 1.0 + 0.2 + 0.02 * 3 / 10),  # 3 edges of 1 mm where the first row ends
    ],
)
def test_costs_of_a_region_count_its_voxels_only(
    tmp_path: Path, name: str, expected: float
) -> None:
    region = ((2, 5), (0, 4), (4, 6))  # of the box 3 x 3 voxels in the slice 4
    part = label_of(tmp_path, (1, 1, 3)).within(region)
    assert cost_named(name)(part) == pytest.approx(expected)


def test_effort_counts_the_case_once_the_unit_and_the_contours(tmp_path: Path) -> None:
    label = label_of(tmp_path, (2, 1, 3))
    # two slices of 5 x 3 voxels of 2 x 1 mm; in one of them a corner of another class
    assert contour_mm(label) == pytest.approx(2 * (2 * 5 * 2 + 2 * 3 * 1) + 2 + 1)
    minutes = Effort(minutes_per_case=3, minutes_per_region=0.5, minutes_per_cm=0.1)
    cost = cost_named("effort", minutes)
    assert cost(label) == pytest.approx(3 + 0.5 + 0.1 * 5.5)
    assert cost(replace(label, opens_case=False)) == pytest.approx(0.5 + 0.1 * 5.5)
    with pytest.raises(ConfigError, match=r"effort.minutes_per_cm is -1; it must be a number"):
        Effort(minutes_per_cm=-1)
    with pytest.raises(ConfigError, match="each number of effort is 0"):
        Effort(minutes_per_case=0, minutes_per_region=0, minutes_per_cm=0)


def test_what_a_region_holds(tmp_path: Path) -> None:
    label = label_of(tmp_path, (1, 1, 3))
    found = contents(label.within(((2, 7), (1, 4), (3, 5))))  # the box itself
    assert found["classes"] == "1 2"
    assert found["foreground_voxels"] == found["voxels"] == 30
    assert found["boundary_voxels"] == 4  # the voxel of class 2 and its three neighbours
    assert found["inner_voxels"] == 26
    assert contents(label.within(((8, 10), (0, 2), (0, 2))))["classes"] == ""


def test_ignored_voxels_cost_nothing(tmp_path: Path) -> None:
    label = replace(label_of(tmp_path, (1, 1, 3)), ignore_value=2)
    assert cost_named("voxels")(label) == 479
    assert cost_named("foreground_voxels")(label) == 29
    assert contents(label)["classes"] == "1"


def test_the_share_of_a_region_is_one_of_what_can_be_annotated(tmp_path: Path) -> None:
    label = replace(label_of(tmp_path, (1, 1, 3)), ignore_value=0)  # 30 of 480 voxels are known
    part = label.within(((2, 5), (0, 4), (4, 6)))  # 9 of its 24
    assert part.n_voxels == 9
    assert cost_named("volume")(part) == pytest.approx(9 / 30)
    assert cost_named("voxels")(part) == contents(part)["voxels"] == 9
    assert cost_named("volume")(label) == 1


def test_a_file_is_read_once_and_its_case_opened_once(tmp_path: Path) -> None:
    label_of(tmp_path, (1, 1, 1))
    path = tmp_path / "label.nii.gz"
    units = [Unit("a", ((i, i + 2), (0, 2), (0, 2))) for i in (0, 4)]
    found = dict(annotated_units({units[0]: path, Unit("b"): path, units[1]: path}))
    assert [found[unit].opens_case for unit in units] == [True, False]
    assert found[Unit("b")].opens_case
    assert found[Unit("b")].n_voxels == 480
    assert found[units[1]].n_voxels == 8
