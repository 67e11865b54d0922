"""Maps on the source image's grid: by hand, in slabs, and where preprocessing has cropped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alseg.data import source_grid
from alseg.data.source_grid import classes_on_source_grid, values_on_source_grid


def entry_of(affine: np.ndarray, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The entry of a preprocessed image whose source has voxels of 1 mm at the world's origin."""
    return {
        "affine": torch.from_numpy(affine),
        "source_affine": torch.eye(4, dtype=torch.float64),
        "source_shape": torch.tensor(shape),
    }


def coarser(factor: float) -> np.ndarray:
    """Voxels of ``factor`` mm, which fill the source's box from its corner."""
    affine = np.diag([factor, factor, factor, 1.0])
    affine[:3, 3] = (factor - 1) / 2
    return affine


def sphere(n: int) -> torch.Tensor:
    """How much of each voxel of a box of n voxels a side is in a sphere, as probabilities."""
    fine = 48
    centre = (torch.arange(fine) + 0.5) / fine - 0.5
    squared = centre[:, None, None] ** 2 + centre[None, :, None] ** 2 + centre**2
    inside = (squared < 0.35**2).float()
    share = torch.nn.functional.avg_pool3d(inside[None], fine // n)
    return torch.cat([1 - share, share])  # [2, n, n, n]


def test_values_are_interpolated_between_voxels() -> None:
    affine = np.diag([2.0, 1.0, 1.0, 1.0])  # at 0, 2 and 4 mm along the first axis
    values = torch.tensor([1.0, 3.0, 7.0]).reshape(3, 1, 1)
    found = values_on_source_grid(values, entry_of(affine, (5, 1, 1)))
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0]))
    assert found.dtype == torch.float32


def test_outside_of_what_preprocessing_left_is_background_without_uncertainty() -> None:
    affine = np.eye(4)
    affine[:3, 3] = (2, 1, 0)  # the source's voxels from (2, 1, 0) on
    ones = torch.ones(2, 2, 2)
    entry = entry_of(affine, (5, 4, 2))
    expected = torch.zeros(5, 4, 2)
    expected[2:4, 1:3] = 1
    torch.testing.assert_close(values_on_source_grid(ones, entry), expected)
    classes = classes_on_source_grid(torch.stack([0 * ones, ones]), entry)
    torch.testing.assert_close(classes, expected.to(torch.uint8))


@pytest.mark.parametrize("slab", [1, 400, 1000, 10**9])
def test_slabs_of_any_thickness_give_the_same_maps(
    slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = torch.Generator().manual_seed(0)
    probabilities = torch.rand(3, 9, 8, 7, generator=rng)
    entry = entry_of(coarser(2.2), (19, 17, 15))
    entry["source_affine"][:3, :3] = torch.tensor([[0, -1, 0], [0.1, 0, 1], [1, 0, 0.1]])
    entry["source_affine"][:3, 3] = torch.tensor([17.0, -0.4, 0.3])
    monkeypatch.setattr(source_grid, "SLAB", 10**8)
    classes = classes_on_source_grid(probabilities, entry)
    values = values_on_source_grid(probabilities[0], entry)
    assert classes.shape == (19, 17, 15)
    assert set(classes.unique().tolist()) == {0, 1, 2}
    monkeypatch.setattr(source_grid, "SLAB", slab)
    assert torch.equal(classes_on_source_grid(probabilities, entry), classes)
    torch.testing.assert_close(values_on_source_grid(probabilities[0], entry), values)


def test_probabilities_keep_an_outline_that_classes_would_lose() -> None:
    truth = sphere(24).argmax(dim=0)
    probabilities = sphere(8)  # three voxels of the source in one
    entry = entry_of(coarser(3), (24, 24, 24))
    hard = torch.nn.functional.one_hot(probabilities.argmax(dim=0)).movedim(-1, 0)

    def dice(found: torch.Tensor) -> float:
        return float(2 * (found * truth).sum() / (found.sum() + truth.sum()))

    nearest = probabilities.argmax(dim=0)
    for axis in range(3):
        nearest = nearest.repeat_interleave(3, dim=axis)
    soft = dice(classes_on_source_grid(probabilities, entry))
    assert soft > 0.97
    assert soft > dice(classes_on_source_grid(hard, entry)) + 0.01
    assert soft > dice(nearest) + 0.02


def test_more_than_256_classes_have_a_type_that_holds_them() -> None:
    probabilities = torch.zeros(300, 2, 2, 2)
    probabilities[299] = 1
    classes = classes_on_source_grid(probabilities, entry_of(np.eye(4), (2, 2, 2)))
    assert classes.dtype == torch.int32
    assert (classes == 299).all()
