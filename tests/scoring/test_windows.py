"""Windows cut and blended by alseg: the same as MONAI's inferer makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from torch import Tensor

from alseg.scoring.windows import shifted, sliding_windows


def position_matters(windows: Tensor) -> Tensor:
    """Two classes, whose logits depend on the place within the window."""
    ramp = torch.linspace(0, 1, windows[0, 0].numel()).reshape(windows.shape[2:])
    return torch.cat([windows + ramp, windows * ramp], dim=1)


@pytest.mark.parametrize("size", [(20, 17, 9), (8, 8, 8), (5, 30, 3), (16, 12, 24)])
@pytest.mark.parametrize(
    "settings",
    [
        {"roi_size": (8, 8, 8), "overlap": 0.25},
        {"roi_size": (8, 10, 6), "overlap": 0.5, "mode": "gaussian"},
        {"roi_size": (8, -1, 6), "overlap": (0.1, 0.3, 0.6), "mode": "gaussian"},
        {"roi_size": 8, "overlap": 0.0, "padding_mode": "replicate", "sigma_scale": 0.3},
        {"roi_size": (7, 9, 8), "mode": "gaussian", "cache_roi_weight_map": True, "cval": -1.0},
    ],
)
def test_stitching_equals_monais(size: tuple[int, int, int], settings: dict[str, Any]) -> None:
    image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
    inferer = SlidingWindowInferer(sw_batch_size=3, **settings)
    windows = sliding_windows(image, inferer)
    assert windows is not None
    total = torch.zeros(2, *windows.image.shape[2:])
    for index in range(len(windows.boxes)):
        windows.add(total, index, position_matters(windows.cut([index]))[0])
    stitched = (total / windows.weight)[(slice(None), *windows.inside)]
    expected = inferer(image, position_matters)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(stitched, expected[0], atol=1e-6, rtol=1e-6)


def test_a_box_can_be_told_from_another_origin() -> None:
    windows = sliding_windows(torch.zeros(1, 1, 20, 20, 20), SlidingWindowInferer(8, overlap=0.0))
    assert windows is not None
    assert windows.boxes[1] == (slice(0, 8), slice(0, 8), slice(8, 16))
    assert shifted(windows.boxes[1], (0, 0, 8)) == (slice(0, 8), slice(0, 8), slice(0, 8))


def test_other_inferers_are_left_to_themselves() -> None:
    image = torch.zeros(1, 1, 8, 8, 8)
    for inferer in (
        SimpleInferer(),
        SlidingWindowInfererAdapt(8),
        SlidingWindowInferer(8, with_coord=True),
        SlidingWindowInferer(8, buffer_steps=2),
    ):
        assert sliding_windows(image, inferer) is None


def test_stitching_follows_the_inferers_device() -> None:
    image = torch.zeros(1, 1, 8, 8, 8, device="meta")
    for settings, expected in (
        ({}, "meta"),
        ({"device": "cpu"}, "cpu"),
        ({"cpu_thresh": 100}, "cpu"),
        ({"cpu_thresh": 1000}, "meta"),
    ):
        windows = sliding_windows(image, SlidingWindowInferer(8, **settings))  # type: ignore[arg-type]
        assert windows is not None
        assert windows.weight.device.type == expected
        assert windows.image.device.type == "meta"
