"""From the preprocessed grid back to the grid of the source image, on which people look at maps.

Classes come from their probabilities: each is resampled linearly, and the most likely one wins.
Rejected: resampling the class indices by nearest neighbour, whose outlines have the steps of the
coarser grid: a network at 1.5 mm had a test Dice of .757 on hippocampus files of 1 mm this way, of
.745 by nearest neighbour (docs/predict.md). The labels themselves, brought to 1.5 mm and back, have
a Dice with themselves of .972 and .896.

Memory: besides what is given and what is returned (a source CT of 512 x 512 x 600 voxels takes
0.16 GB of classes, 0.63 GB of values), a copy of the input in double precision, and slabs of the
source of about ``SLAB`` voxels, one after another. A slab takes about 33 bytes a voxel and 13 more
a class: 0.3 GB with 3 classes (measured on a CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from monai.utils import convert_to_tensor
from torch import Tensor

from alseg.strategies.statistics import class_dtype, most_likely

SLAB = 2**22  # voxels of the source that are resampled at once


def classes_on_source_grid(probabilities: Tensor, entry: Mapping[str, Tensor]) -> Tensor:
    """The most likely class of each voxel of the source image.

    Args:
        probabilities: of each class on the preprocessed grid, shape [C, D, H, W].
        entry: the preprocessed image, as ``VolumeCache.image`` gives it.

    Returns:
        Class indices in the smallest type that holds them, on the CPU, with the shape of the source
        image [D, H, W]; 0 where preprocessing has cropped.
    """
    dtype = class_dtype(len(probabilities))
    return _resampled(
        probabilities, entry, lambda slab: most_likely(slab, dim=0).to(dtype=dtype, device="cpu")
    )


def values_on_source_grid(values: Tensor, entry: Mapping[str, Tensor]) -> Tensor:
    """A voxel map, such as of uncertainty, interpolated linearly onto the source image.

    Args:
        values: on the preprocessed grid, shape [D, H, W].
        entry: the preprocessed image, as ``VolumeCache.image`` gives it.

    Returns:
        float32 on the CPU, with the shape of the source image [D, H, W]; 0 where preprocessing has
        cropped.
    """
    return _resampled(values.unsqueeze(0), entry, lambda slab: slab[0].float().cpu())


def _resampled(
    volume: Tensor, entry: Mapping[str, Tensor], reduce: Callable[[Tensor], Tensor]
) -> Tensor:
    """Resample a volume [C, D, H, W]; ``reduce`` takes each slab [C, d, H, W] to [d, H, W]."""
    resample = SpatialResample(mode="bilinear", padding_mode="zeros")
    if volume.device.type == "mps":  # Apple's GPUs have no double precision
        volume = volume.cpu()
    image = MetaTensor(volume.double(), affine=entry["affine"])  # else converted for each slab
    depth, *plane = entry["source_shape"].tolist()
    thickness = max(1, SLAB // (plane[0] * plane[1]))
    slabs = []
    for start in range(0, depth, thickness):
        affine = entry["source_affine"].clone()
        affine[:3, 3] += start * affine[:3, 0]  # the slab's first voxel
        size = [min(thickness, depth - start), *plane]
        slab = resample(image, dst_affine=affine, spatial_size=size)
        slabs.append(reduce(convert_to_tensor(slab, track_meta=False)))
    return torch.cat(slabs)
