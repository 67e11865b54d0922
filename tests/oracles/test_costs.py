"""Annotation costs of hand-made labels, and the budget that they add up to."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from alseg.core.errors import ConfigError, DataError
from alseg.oracles.costs import COSTS, cost_named


def label_file(folder: Path, spacing: tuple[float, float, float]) -> Path:
    """10 x 8 x 6 voxels with a box of 5 x 3 x 2, two classes."""
    classes = np.zeros((10, 8, 6), np.uint8)
    classes[2:7, 1:4, 3:5] = 1
    classes[2, 1, 3] = 2
    path = folder / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(classes, np.diag([*spacing, 1.0])), path)  # type: ignore[attr-defined]
    return path


@pytest.mark.parametrize(
    ("name", "expected"), [("volume", 1), ("voxels", 480), ("foreground_voxels", 30), ("slices", 2)]
)
def test_costs_by_hand(tmp_path: Path, name: str, expected: float) -> None:
    assert cost_named(name)(label_file(tmp_path, (1, 1, 3))) == expected


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [((1, 1, 1), 2), ((5, 1, 1), 5), ((1, 4, 1), 3), ((1, 1.005, 1.0), 2)],
)
def test_slices_lie_across_the_coarsest_axis(
    tmp_path: Path, spacing: tuple[float, float, float], expected: float
) -> None:
    assert COSTS["slices"](label_file(tmp_path, spacing)) == expected


def test_an_empty_label_costs_nothing_to_paint(tmp_path: Path) -> None:
    path = tmp_path / "empty.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), path)  # type: ignore[attr-defined]
    assert {name: cost(path) for name, cost in COSTS.items()} == {
        "volume": 1,
        "voxels": 64,
        "foreground_voxels": 0,
        "slices": 0,
    }


def test_unknown_costs_and_broken_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hours"):
        cost_named("hours")
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no nifti")
    for name in ("voxels", "foreground_voxels", "slices"):
        with pytest.raises(DataError, match=r"broken\.nii\.gz"):
            COSTS[name](broken)
