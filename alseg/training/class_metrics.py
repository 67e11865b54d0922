"""The metrics of one class in one case: overlap, and distances between surfaces.

Dice = 2|P∩L| / (|P|+|L|), of voxels. A surface is the voxels of a mask that one of the six
neighbours of, or the edge of the volume, does not belong to it; a distance is that of a voxel's
centre on one surface to the nearest on the other one, in mm.

- Surface Dice: the share of the voxels of both surfaces whose distance is at most the tolerance.
  Source: S. Nikolov et al., "Clinically applicable segmentation of head and neck anatomy"
  (J. Med. Internet Res. 23, 2021), with voxels counted in place of areas.
- HD95: the 95th percentile of the distances, in each direction, and the larger of the two. Source:
  D. P. Huttenlocher et al., "Comparing images using the Hausdorff distance" (IEEE TPAMI 15, 1993),
  for the maximum.

They are MONAI's. A metric of a mask without voxels is not MONAI's, see ``class_metrics``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from torch import Tensor

from alseg.core.errors import DataError
from alseg.core.metric_names import DICE, HD95, SURFACE_DICE

_MAX_COSINE = 0.01  # between two axes that are taken for perpendicular


@dataclass(frozen=True)
class VoxelSize:
    """What distances in a volume are measured with.

    Attributes:
        spacing_mm: along each axis, [3].
        diagonal_mm: of the volume's box, from corner to corner.
    """

    spacing_mm: tuple[float, ...]
    diagonal_mm: float

    @classmethod
    def of(cls, affine: Tensor, shape: Sequence[int], name: str) -> VoxelSize:
        """The voxel size of a grid.

        Args:
            affine: its voxel-to-world matrix in mm, [4, 4].
            shape: its voxels, [3].
            name: of the case, for the error.

        Raises:
            DataError: if its axes are not perpendicular, as where a gantry was tilted: a distance
                is then not that of voxel edges.
        """
        if not is_perpendicular(affine):
            raise DataError(
                f"the axes of {name} are not perpendicular, so that its voxel edges do not give "
                "surface distances; use evaluation.metrics=[dice], or resample its files"
            )
        spacing = affine[:3, :3].double().norm(dim=0).tolist()
        edges = [mm * n for mm, n in zip(spacing, shape, strict=True)]
        return cls(tuple(spacing), math.hypot(*edges))


def is_perpendicular(affine: Tensor) -> bool:
    """Whether the axes of a voxel-to-world matrix [4, 4] are perpendicular, however they lie."""
    axes = torch.nn.functional.normalize(affine[:3, :3].double(), dim=0)
    cosines = axes.T @ axes - torch.eye(3, dtype=torch.float64, device=axes.device)
    return bool(cosines.abs().max() <= _MAX_COSINE)


@dataclass(frozen=True)
class ClassMetrics:
    """The metrics of one class in one case.

    Attributes:
        values: by name; NaN for a class that counts for nothing.
        is_undefined: whether no distance exists, as one of the two masks has no voxel.
    """

    values: dict[str, float]
    is_undefined: bool = False


def class_metrics(
    predicted: Tensor,
    reference: Tensor,
    metrics: Sequence[str],
    *,
    absent_counts: bool,
    tolerance_mm: float = 1.0,
    size: VoxelSize | None = None,
) -> ClassMetrics:
    """The metrics of one class in one case; where a mask is empty, the best or the worst value.

    The reference has the class and the prediction does not: Dice and surface Dice are 0, and HD95,
    which does not exist, is the diagonal of the volume. The reference does not have it: nothing
    counts, or, with ``absent_counts``, a prediction of it has the same worst values and a correct
    absence the best ones (1, 1 and 0 mm), as in the BraTS challenges, whose 373.13 mm are the
    diagonal of their volumes (F. Isensee et al., "nnU-Net for brain tumor segmentation", BrainLes
    2020; lesion by lesion since 2023).

    Args:
        predicted: bool, shape [D, H, W].
        reference: the same.
        metrics: their names.
        absent_counts: whether a class counts that the reference does not have.
        tolerance_mm: of the surface Dice.
        size: of the voxels; only distances need it.
    """
    has_reference, has_prediction = bool(reference.any()), bool(predicted.any())
    if not has_reference and not absent_counts:
        return ClassMetrics(dict.fromkeys(metrics, math.nan))
    if has_reference and has_prediction:
        return ClassMetrics(_of_masks(predicted, reference, metrics, tolerance_mm, size))
    is_right = has_reference == has_prediction
    distance = 0.0 if is_right or size is None else size.diagonal_mm
    values = {DICE: float(is_right), SURFACE_DICE: float(is_right), HD95: distance}
    return ClassMetrics({name: values[name] for name in metrics}, is_undefined=not is_right)


def _of_masks(
    predicted: Tensor,
    reference: Tensor,
    metrics: Sequence[str],
    tolerance_mm: float,
    size: VoxelSize | None,
) -> dict[str, float]:
    """The metrics of two masks that have voxels."""
    # [1, 1, D, H, W]; the least box of both, as MONAI makes copies of it in single precision
    box = _box(predicted | reference)
    pair = predicted[box][None, None], reference[box][None, None]
    values = {DICE: float(compute_dice(*pair))}
    if tuple(metrics) == (DICE,):
        return values
    pair = pair[0].cpu(), pair[1].cpu()  # on a GPU, MONAI takes other algorithms
    spacing = None if size is None else size.spacing_mm
    with warnings.catch_warnings():
        # MONAI 1.6 warns of an argument that it gives itself
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*")
        if SURFACE_DICE in metrics:
            share = compute_surface_dice(
                *pair, [tolerance_mm], include_background=True, spacing=spacing
            )
            values[SURFACE_DICE] = float(share)
        if HD95 in metrics:
            distance = compute_hausdorff_distance(
                *pair, include_background=True, percentile=95, spacing=spacing
            )
            values[HD95] = float(distance)
    return {name: values[name] for name in metrics}


def _box(mask: Tensor) -> tuple[slice, ...]:
    """The least box that holds a mask [D, H, W] which is not empty."""
    slices = []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        inside = mask.amax(dim=others).nonzero().flatten()
        slices.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(slices)
