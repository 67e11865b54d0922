"""Augmentation of samples of which only a part has been annotated.

Crops are centred at annotated voxels: nnU-Net v2 does the same with an ignore label. MONAI's crops
know of no such label, and where nothing is ignored they are called as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import reduce
from typing import Any

import torch
from monai.data.utils import list_data_collate
from monai.transforms import (
    Compose,
    Padd,
    RandCropByLabelClassesd,
    RandCropByPosNegLabeld,
    Randomizable,
    RandSpatialCropd,
    RandSpatialCropSamplesd,
)
from monai.transforms.utils import map_binary_to_indices, map_classes_to_indices
from torch import Tensor

from alseg.core.units import IGNORED
from alseg.data.counted_crops import CountedCrop, counted

Sample = dict[Any, Any]
Transform = Callable[[Any], Any]
_INDICES, _FOREGROUND, _BACKGROUND = "indices", "foreground indices", "background indices"


def for_partial_labels(transforms: Sequence[Transform]) -> list[Transform]:
    """The same transforms, those among them that pad or crop made fit for ignored voxels.

    Padding before a crop is ignored in a sample with ignored voxels: nobody has annotated it. What
    random transforms bring in from outside of a patch is what they make it, background as a rule.

    A crop at the beginning, or behind padding, gets the same of a case in each draw, and counts
    (``CountedCrop``) where the samples say of which case they are.
    """
    first = next((i for i, t in enumerate(transforms) if not isinstance(t, Padd)), None)
    return [_for_partial_labels(t, counts=i == first) for i, t in enumerate(transforms)]


def _for_partial_labels(transform: Transform, *, counts: bool) -> Transform:
    if isinstance(transform, Compose):  # or one of its kinds, such as OneOf
        composed = copy(transform)
        composed.transforms = tuple(for_partial_labels(transform.transforms))
        return composed
    if isinstance(transform, Padd) and "label" in transform.keys:
        return IgnoredPadding(transform)
    if isinstance(transform, tuple(_CROPS)) and "label" in getattr(transform, "keys", ()):
        return AnnotatedCrop(transform, counted(transform) if counts else None)
    return transform


def has_ignored(sample: Sample) -> bool:
    """Whether voxels of a sample's label [1, D, H, W] were not annotated."""
    label = sample["label"]
    return label.dtype.is_signed and bool((label < 0).any())


class IgnoredPadding:
    """Pads; of a sample with ignored voxels what is padded with zeros is ignored as well."""

    def __init__(self, pad: Padd) -> None:
        self.pad = pad

    def __call__(self, sample: Sample) -> Sample:
        """Pad a sample."""
        if not has_ignored(sample):
            return self.pad(sample)
        padded = self.pad({**sample, "label": sample["label"] - IGNORED})  # 0 where ignored
        return {**padded, "label": padded["label"] + IGNORED}


class AnnotatedCrop(Randomizable):
    """Crops; the centres of a sample with ignored voxels lie at annotated ones.

    A crop that draws positive and negative centres draws them among the annotated foreground and
    background; where there is none of what it asks for, at any annotated voxel. A crop at random
    has each annotated voxel as its centre with the same probability. As always, a centre near the
    border of the volume is moved until the crop lies inside.

    Args:
        crop: MONAI's.
        counted: the same for samples of known cases without ignored voxels; None for none.
    """

    def __init__(self, crop: Any, counted: CountedCrop | None = None) -> None:
        self.crop, self.counted = crop, counted

    def set_random_state(self, seed: Any = None, state: Any = None) -> AnnotatedCrop:
        """That of the crop."""
        self.crop.set_random_state(seed, state)
        return self

    def __call__(self, sample: Sample) -> Any:
        """Crop a sample; returns a sample or a list of them, as the crop does."""
        if not has_ignored(sample):
            if self.counted is not None and "case_id" in sample:
                return self.counted(sample)
            return self.crop(sample)
        crop = next(kind for kind in _CROPS if isinstance(self.crop, kind))
        return _CROPS[crop](self.crop, sample)


def _annotated_voxels(label: Tensor) -> Tensor:
    """Indices of the annotated voxels of a label, of all where there is none."""
    annotated = (label >= 0).flatten()
    return annotated.nonzero().flatten() if annotated.any() else torch.arange(label.numel())


def _by_pos_neg(crop: Any, sample: Sample) -> Any:
    label, image = sample["label"], sample.get(crop.image_key)
    positive, negative = map_binary_to_indices(label > 0, image, crop.cropper.image_threshold)
    negative = negative[(label >= 0).flatten()[negative]]
    kinds = [kind for kind in (positive, negative) if len(kind)] or [_annotated_voxels(label)]
    crop = copy(crop)
    crop.fg_indices_key, crop.bg_indices_key = _FOREGROUND, _BACKGROUND
    return crop({**sample, _FOREGROUND: kinds[0], _BACKGROUND: kinds[-1]})


def _by_classes(crop: Any, sample: Sample) -> Any:
    label, cropper = sample["label"], copy(crop.cropper)  # with the same random state
    indices = map_classes_to_indices(
        label,
        cropper.num_classes,
        sample.get(crop.image_key),
        cropper.image_threshold,
        cropper.max_samples_per_class,
    )
    ratios = [1] * len(indices) if cropper.ratios is None else cropper.ratios
    if not any(ratio and len(found) for ratio, found in zip(ratios, indices, strict=True)):
        indices = [_annotated_voxels(label)] * len(indices)
    cropper.warn = False  # a region without one of the classes is nothing to report
    crop = copy(crop)
    crop.cropper, crop.indices_key = cropper, _INDICES
    return crop({**sample, _INDICES: indices})


def _at_random(crop: Any, sample: Sample) -> Any:
    cropper = crop.cropper
    one = isinstance(crop, RandSpatialCropd)
    simple = cropper if one else cropper.cropper
    if not simple.random_center or simple.random_size:
        return crop(sample)
    annotated = RandCropByLabelClassesd(
        crop.keys,
        "label",
        simple.roi_size,
        ratios=[1],
        num_classes=1,
        num_samples=1 if one else cropper.num_samples,
        indices_key=_INDICES,
        allow_smaller=True,
        allow_missing_keys=crop.allow_missing_keys,
    )
    annotated.cropper.R = cropper.R if one else crop.R
    crops = annotated({**sample, _INDICES: [_annotated_voxels(sample["label"])]})
    return crops[0] if one else crops


_CROPS: dict[type, Callable[[Any, Sample], Any]] = {
    RandCropByPosNegLabeld: _by_pos_neg,
    RandCropByLabelClassesd: _by_classes,
    RandSpatialCropd: _at_random,
    RandSpatialCropSamplesd: _at_random,
}


def collated(samples: Sequence[Sample | list[Sample]]) -> Any:
    """A batch of samples, or of lists of them; labels with and without ignored voxels may differ in
    type, and get a common one."""
    flat = [s for part in samples for s in (part if isinstance(part, list) else [part])]
    dtypes = {sample["label"].dtype for sample in flat}
    if len(dtypes) > 1:
        dtype = reduce(torch.promote_types, dtypes)
        flat = [{**sample, "label": sample["label"].to(dtype)} for sample in flat]
    return list_data_collate(flat)
