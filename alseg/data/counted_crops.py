"""Crops around voxels of chosen classes that look through a volume once, and not in each draw.

To draw a centre MONAI lists the indices of all voxels of each class, of which it takes one. The
list has 8 bytes a voxel and takes longer than the crop of it. How many voxels of a class there are
up to the end of each row of the volume says the same, and can be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from cachetools import LRUCache
from monai.transforms import RandCropByLabelClassesd, RandCropByPosNegLabeld
from torch import Tensor

Sample = dict[Any, Any]
# of some rows of a volume: which of their voxels are meant, bool [rows, width]
Mask = Callable[[slice], Tensor]
_KEPT = 2**26  # bytes of counts that a training keeps
_ALL = slice(None)
_INDICES, _FOREGROUND, _BACKGROUND = "indices", "foreground indices", "background indices"


class Voxels:
    """The indices of a mask's voxels in a flattened volume, ascending, as a list would hold them.

    Not a ``collections.abc.Sequence``, of which MONAI would make an array.

    Args:
        mask: says which voxels are meant.
        counts: how many there are up to the end of each row, [n_rows].
    """

    def __init__(self, mask: Mask, counts: Tensor) -> None:
        self.mask, self.counts = mask, counts

    def __len__(self) -> int:
        return int(self.counts[-1])

    def __getitem__(self, number: int) -> int:
        row = int(torch.searchsorted(self.counts, number, right=True))
        voxels = self.mask(slice(row, row + 1))[0]
        before = int(self.counts[row - 1]) if row else 0
        return row * len(voxels) + int(voxels.nonzero()[number - before])


class CountedCrop:
    """A crop of MONAI's with the same crops for the same seed, for samples of known cases.

    A case always has to come with the same image and label.

    Args:
        crop: around positive and negative voxels, or around classes.
    """

    def __init__(self, crop: RandCropByPosNegLabeld | RandCropByLabelClassesd) -> None:
        self.crop = crop
        self._counts: LRUCache[str, list[Tensor]] = LRUCache(_KEPT, _n_bytes)

    def __call__(self, sample: Sample) -> Any:
        """Crop a sample with a ``case_id``: a list of samples, as the crop gives it."""
        masks = _masks(self.crop, sample)
        case_id = sample["case_id"]
        counts = self._counts.get(case_id)
        if counts is None:
            counts = [mask(_ALL).sum(dim=1).cumsum(dim=0) for mask in masks]
            if _n_bytes(counts) <= _KEPT:
                self._counts[case_id] = counts
        more: Sample
        voxels = [Voxels(*of_mask) for of_mask in zip(masks, counts, strict=True)]
        crop: Any = copy(self.crop)  # with the same random state
        if isinstance(crop, RandCropByPosNegLabeld):
            crop.fg_indices_key, crop.bg_indices_key = _FOREGROUND, _BACKGROUND
            more = {_FOREGROUND: voxels[0], _BACKGROUND: voxels[1]}
        else:
            crop.indices_key, more = _INDICES, {_INDICES: voxels}
        return crop(sample | more)


def counted(crop: Any) -> CountedCrop | None:
    """A crop that counts, in place of one of MONAI's; None of one that is another kind."""
    if isinstance(crop, RandCropByPosNegLabeld):
        given = crop.fg_indices_key, crop.bg_indices_key
        return CountedCrop(crop) if given == (None, None) else None
    if isinstance(crop, RandCropByLabelClassesd):
        plain = crop.indices_key is None and not crop.cropper.max_samples_per_class
        return CountedCrop(crop) if plain and crop.cropper.num_classes else None
    return None


def _n_bytes(counts: list[Tensor]) -> int:
    return sum(count.nbytes for count in counts)


def _masks(crop: RandCropByPosNegLabeld | RandCropByLabelClassesd, sample: Sample) -> list[Mask]:
    """The masks of a sample's label [1, D, H, W] around whose voxels a crop may lie."""
    label = _rows(sample[crop.label_key])[0]  # [rows, width]
    image = None if crop.image_key is None else _rows(sample[crop.image_key])
    threshold = crop.cropper.image_threshold

    def content(rows: slice) -> Tensor:
        return (
            torch.ones_like(label[rows], dtype=torch.bool)
            if image is None
            else (image[:, rows] > threshold).any(0)
        )

    if isinstance(crop, RandCropByPosNegLabeld):
        # MONAI 1.6 inverts the bits of an unsigned label, and takes any voxel for a negative one
        # where no image tells it which to leave out
        anywhere = image is None and label.dtype == torch.uint8
        return [
            lambda rows: label[rows] != 0,
            lambda rows: content(rows) & ((label[rows] == 0) | anywhere),
        ]
    return [
        lambda rows, c=c: content(rows) & (label[rows] == c)  # type: ignore[misc]
        for c in range(crop.cropper.num_classes or 0)
    ]


def _rows(volume: Tensor) -> Tensor:
    """[channels, D, H, W] to [channels, D H, W]."""
    return volume.flatten(1, 2)
