"""The sliding windows of a volume, cut and blended as MONAI's SlidingWindowInferer does.

MONAI's inferer runs all windows and returns the stitched volume. Scoring wants to run some of them,
in an order of its own, and to add their logits to others that it has already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer, SlidingWindowInferer
from monai.inferers.utils import _get_scan_interval
from monai.utils import convert_to_tensor, ensure_tuple_rep, fall_back_tuple
from torch import Tensor

Box = tuple[slice, slice, slice]

# A forward pass of fewer than these is mostly the calls of its layers on a CPU.
VOXELS_AT_ONCE = 2**17


@dataclass(frozen=True)
class Windows:
    """The windows of one volume.

    Attributes:
        image: the volume, padded where a window is larger than it, [1, channels, D', H', W'].
        boxes: where each window lies in the padded volume.
        importance: how much each voxel of a window counts where windows overlap, [d, h, w].
        weight: the sum of all windows' importance, [D', H', W'].
        inside: where the volume lies in the padded one.
        batch_size: how many windows a forward pass takes: as many as the inferer says, and on a CPU
            at least ``VOXELS_AT_ONCE``.
    """

    image: Tensor
    boxes: tuple[Box, ...]
    importance: Tensor
    weight: Tensor
    inside: Box
    batch_size: int

    def cut(self, indices: Sequence[int]) -> Tensor:
        """Some of the windows, [B, channels, d, h, w]."""
        return torch.cat([self.image[(..., *self.boxes[i])] for i in indices])

    def add(self, total: Tensor, index: int, logits: Tensor) -> None:
        """Add a window's weighted logits [C, d, h, w] to the total of the padded volume.

        Args:
            total: sum over windows of importance times logits, [C, D', H', W'].
            index: the window.
            logits: of the window.
        """
        logits = logits.to(total.device, total.dtype)
        total[(slice(None), *self.boxes[index])].addcmul_(logits, self.importance)


def sliding_windows(image: Tensor, inferer: Inferer) -> Windows | None:
    """The windows that the inferer would run over a volume; None if it is not a plain one.

    Args:
        image: shape [1, channels, D, H, W].
        inferer: MONAI's ``SlidingWindowInferer``. Buffered stitching, windows with coordinates and
            subclasses are only for MONAI.
    """
    if not isinstance(inferer, SlidingWindowInferer) or not is_plain(inferer):
        return None
    image = convert_to_tensor(image, track_meta=False)
    size = list(image.shape[2:])
    roi = fall_back_tuple(inferer.roi_size, size)
    padding: list[int] = []
    for axis in (2, 1, 0):  # F.pad counts from the last axis
        missing = max(roi[axis] - size[axis], 0)
        padding += [missing // 2, missing - missing // 2]
    padded = F.pad(image, padding, mode=str(inferer.padding_mode), value=inferer.cval)
    padded_size = tuple(padded.shape[2:])
    interval = _get_scan_interval(padded_size, roi, 3, ensure_tuple_rep(inferer.overlap, 3))
    boxes = tuple((a, b, c) for a, b, c in dense_patch_slices(padded_size, roi, interval))
    device = stitching_device(image, inferer)
    importance = inferer.roi_weight_map
    if importance is None:
        importance = compute_importance_map(
            roi, mode=inferer.mode, sigma_scale=inferer.sigma_scale, dtype=image.dtype
        )
    importance = importance.to(device)
    weight = torch.zeros(padded_size, device=device)
    for box in boxes:
        weight[box] += importance
    low = padding[4], padding[2], padding[0]
    return Windows(
        image=padded,
        boxes=boxes,
        importance=importance,
        weight=weight,
        inside=tuple(slice(a, a + n) for a, n in zip(low, size, strict=True)),  # type: ignore[arg-type]
        batch_size=max(inferer.sw_batch_size, VOXELS_AT_ONCE // math.prod(roi))
        if image.device.type == "cpu"
        else inferer.sw_batch_size,
    )


def is_plain(inferer: Inferer) -> bool:
    """Whether ``sliding_windows`` knows all that the inferer does."""
    return (
        type(inferer) is SlidingWindowInferer
        and not inferer.with_coord
        and not inferer.buffer_steps
        and inferer.sw_device is None
    )


def stitching_device(image: Tensor, inferer: SlidingWindowInferer) -> torch.device:
    """Where volumes are put together: by the inferer's ``device`` and ``cpu_thresh``."""
    if inferer.device is not None:
        return torch.device(inferer.device)
    if inferer.cpu_thresh is not None and image.shape[2:].numel() > inferer.cpu_thresh:
        return torch.device("cpu")
    return image.device


def shifted(box: Box, origin: Sequence[int]) -> Box:
    """A box as seen from another origin."""
    first, second, third = (
        slice(side.start - start, side.stop - start)
        for side, start in zip(box, origin, strict=True)
    )
    return first, second, third


def overlap_of(box: Box, other: Box) -> Box:
    """What two boxes share; they do share something."""
    first, second, third = (
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, other, strict=True)
    )
    return first, second, third


def origin_of(box: Box) -> tuple[int, int, int]:
    """Where a box begins."""
    return box[0].start, box[1].start, box[2].start
