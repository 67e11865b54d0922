"""Each rule by hand cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from alseg.core.errors import ConfigError
from alseg.planning import rules
from alseg.planning.facts import channel_of
from alseg.planning.numbers import CPU, GPU
from tests.planning.builders import channel, facts


def test_the_spacing_is_the_median_along_each_axis() -> None:
    three = facts(
        shapes=((50, 50, 50),) * 3,
        spacings_mm=((1.0, 1.0, 2.0), (1.2, 1.0, 2.0), (3.0, 1.0, 2.5)),
    )
    assert rules.median_spacing(three, CPU) == ([1.2, 1.0, 2.0], None)


def test_along_a_coarse_axis_it_is_the_tenth_percentile() -> None:
    edges = [5.0, *[10.0] * 9]
    spacings = tuple((1.5, 1.5, edge) for edge in edges)
    found = rules.median_spacing(facts((200, 200, 10), spacings_mm=spacings), CPU)
    assert found == ([1.5, 1.5, 9.5], 2)  # NumPy's: 5 + 0.9 (10 - 5)
    # as many slices as voxels in the plane: nothing is gained by more of them
    assert rules.median_spacing(facts((20, 20, 10), spacings_mm=spacings), CPU) == (
        [1.5, 1.5, 10.0],
        None,
    )


def test_a_coarse_axis_never_becomes_finer_than_the_others() -> None:
    spacings = tuple((edge, 2.0, 2.0) for edge in [0.5, 0.5, *[8.0] * 8])
    found = rules.median_spacing(facts((10, 90, 90), spacings_mm=spacings), CPU)
    assert found == ([2.0, 2.0, 2.0], 0)


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((2.5, 2.5, 10.0), 2), ((9.0, 3.0, 1.0), 0), ((1.0, 2.9, 1.0), None), ((6.0, 6.0, 1.0), None)],
)
def test_an_axis_is_coarse_from_three_times_both_others_on(
    spacing: tuple[float, ...], axis: int | None
) -> None:
    assert rules.coarse_axis(spacing, 3.0) == axis


def test_large_images_get_larger_voxels_the_finest_axes_first() -> None:
    ct = facts((500, 500, 100), (1.0, 1.0, 5.0))
    spacing = rules.coarser_spacing(ct, [1.0, 1.0, 5.0], 1_000_000)
    assert spacing[0] == spacing[1] > 4.9
    assert spacing[2] == pytest.approx(5.0, rel=0.04)
    finer = rules.coarser_spacing(ct, [1.0, 1.0, 5.0], 5_000_000)
    assert finer[0] == finer[1] == pytest.approx(math.sqrt(5), rel=0.04)
    assert finer[2] == 5.0  # the coarse axis waits for the others
    # 500 mm x 500 mm x 500 mm in a million voxels: 5 mm; in an eighth of them: 10 mm
    assert spacing[0] == pytest.approx(5.0, rel=0.04)
    assert rules.coarser_spacing(ct, [1.0, 1.0, 5.0], 125_000) == pytest.approx([10] * 3, rel=0.04)
    assert rules.coarser_spacing(ct, [1.0, 1.0, 5.0], math.inf) == [1.0, 1.0, 5.0]


def levels(spacing: Any, size: Any, n_most: int = 99) -> tuple[Any, Any]:
    return rules.levels(spacing, size, GPU.with_changes({"max_levels": n_most}))


def test_alike_axes_are_halved_together_down_to_four_voxels() -> None:
    strides, kernels = levels((1, 1, 1), (128, 128, 128))
    assert strides == [(1, 1, 1), *[(2, 2, 2)] * 5]
    assert kernels == [(3, 3, 3)] * 6
    assert len(levels((1, 1, 1), (128, 128, 128), n_most=3)[0]) == 3


def test_a_coarse_axis_is_halved_once_the_others_have_come_near() -> None:
    # edges 5 | 3.1, 5 | 6.2, 10: cine MRI of the heart
    strides, kernels = levels((1.5625, 1.5625, 5.0), (256, 224, 20))
    assert strides == [(1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 1), (2, 2, 1)]
    assert kernels == [(3, 3, 1), *[(3, 3, 3)] * 5]
    # edges 3.6 are 5.8, 2.9 and then 1.5 times the others: MRI of the prostate
    strides, kernels = levels((3.6, 0.625, 0.625), (20, 320, 256))
    assert strides == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)]
    assert kernels == [(1, 3, 3), (1, 3, 3), *[(3, 3, 3)] * 5]


def test_a_single_slice_is_never_convolved_across() -> None:
    strides, kernels = levels((1, 1, 5), (64, 64, 1))
    assert strides == [(1, 1, 1), *[(2, 2, 1)] * 4]
    assert kernels == [(3, 3, 1)] * 5


def test_an_axis_is_not_halved_by_itself_for_the_last_bit() -> None:
    assert levels((1, 1, 1), (32, 16, 16))[0] == [(1, 1, 1), (2, 2, 2), (2, 2, 2)]
    assert levels((1, 1, 1), (48, 16, 16))[0] == [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 1, 1)]


def test_a_network_has_three_levels_at_least() -> None:
    assert levels((1, 1, 1), (8, 8, 8))[0] == [(1, 1, 1), (2, 2, 2), (2, 2, 2)]
    assert levels((1, 1, 1), (11, 3, 1))[0] == [(1, 1, 1), (2, 1, 1), (2, 1, 1)]


def test_divisors_are_the_products_of_strides() -> None:
    assert rules.divisors([(1, 1, 1), (2, 2, 1), (2, 2, 2)]) == (4, 4, 2)
    assert rules.divisors([2, 2, 2]) == (8, 8, 8)  # as MONAI's UNet has them
    assert rules.divisors([]) == (1, 1, 1)
    assert rules.padded([81.0, 96, 9], (16, 16, 2)) == [96, 96, 10]


def patch_of(shape: tuple[int, ...], spacing: tuple[float, ...], max_voxels: int) -> list[int]:
    numbers = CPU.with_changes({"step_voxels": 2 * max_voxels})
    return rules.patch_size(spacing, np.array(shape), numbers, lambda p: math.prod(p) <= max_voxels)


def test_a_patch_is_the_whole_image_where_it_fits() -> None:
    assert patch_of((35, 50, 36), (1, 1, 1), 100_000) == [40, 56, 40]
    assert patch_of((81, 96, 9), (2.5, 2.5, 10), 100_000) == [96, 96, 10]


def test_else_the_longest_axis_is_cut_against_the_image() -> None:
    patch = patch_of((400, 200, 200), (1, 1, 1), 100_000)
    assert math.prod(patch) <= 100_000
    assert patch[0] > patch[1]
    assert abs(patch[1] - patch[2]) <= 8  # the smallest cut


def test_a_patch_fits_a_network_that_is_there_already() -> None:
    size = rules.patch_size((1, 1, 1), np.array((35, 50, 9)), CPU, lambda _: True, (16, 16, 16))
    assert size == [48, 64, 16]


def test_a_patch_that_nothing_fits_is_as_small_as_the_network_allows() -> None:
    patch = rules.patch_size((1, 1, 1), np.array((300, 300, 300)), CPU, lambda _: False)
    assert patch == [8, 8, 8]
    assert patch_of((1, 1, 1), (1, 1, 1), 10**6) == [8, 8, 8]


def test_filters_double_up_to_a_limit() -> None:
    assert rules.filters(7, GPU) == [32, 64, 128, 256, 320, 320, 320]


def test_memory_grows_with_batch_and_patch() -> None:
    def needed(patch: tuple[int, ...], n: int) -> int:
        return rules.training_bytes(patch, n, [(1, 1, 1), (2, 2, 2)], [16, 32], 3)

    assert needed((32, 32, 32), 4) == 4 * needed((32, 32, 32), 1)
    assert needed((64, 32, 32), 1) == 2 * needed((32, 32, 32), 1)
    # 16 tensors of 16 filters and, at an eighth of the voxels, of 32; 6 of the classes; 4 bytes
    assert needed((2, 2, 2), 1) == 4 * (16 * (16 * 8 + 32 * 1) + 6 * 3 * 8)


def test_a_batch_has_the_voxels_of_a_step() -> None:
    def batch(patch: tuple[int, ...], n_voxels: float = 1e9, fits: int = 99) -> int:
        return rules.batch_size(patch, n_voxels, CPU, lambda n: n <= fits)

    assert batch((32, 32, 32)) == 6  # of 32,768 voxels, with 200,000 a step
    assert batch((40, 40, 40)) == CPU.min_batch
    assert batch((96, 96, 20)) == CPU.min_batch
    assert batch((8, 8, 8)) == CPU.max_batch
    assert batch((32, 32, 32), fits=5) == 5
    assert batch((32, 32, 32), n_voxels=100 * 32**3) == 5  # a twentieth of the data set
    assert batch((32, 32, 32), n_voxels=32**3) == CPU.min_batch


def test_one_window_holds_most_volumes_unless_it_is_too_large() -> None:
    some = facts(
        shapes=(*[(30, 30, 30)] * 8, (40, 33, 30), (90, 90, 90)), spacings_mm=((1,) * 3,) * 10
    )
    assert rules.scoring_window([32, 32, 32], some, (1, 1, 1), (8, 8, 8), 10**6) == [48, 40, 40]
    assert rules.scoring_window([32, 32, 32], some, (1, 1, 1), (8, 8, 8), 40_000) == [32, 32, 32]


def test_thick_slices_are_turned_within_and_not_stretched_across() -> None:
    assert rules.in_plane(0.3, 2, rotation=True) == [0.0, 0.0, 0.3]
    assert rules.in_plane(0.2, 0, rotation=False) == [0.0, 0.2, 0.2]
    assert rules.in_plane(0.2, None, rotation=True) == [0.2, 0.2, 0.2]


def test_equally_many_patches_lie_around_each_class_and_the_background() -> None:
    assert rules.crop_ratios(2) == [1, 1]
    assert rules.crop_ratios(4) == [1, 1, 1, 1]


def test_ct_is_clipped_and_scaled_alike_in_all_scans() -> None:
    (transform,), why = rules.intensities([channel("CT")])
    assert transform == {
        "_target_": "monai.transforms.ScaleIntensityRange",
        "a_min": -100.0, "a_max": 300.0, "b_min": -2.0, "b_max": 4.667, "clip": True,
    }  # fmt: skip
    assert why.startswith("CT by its name")


@pytest.mark.parametrize("names", [["MRI"], ["T1", "T2"], ["CT", "PET"], ["contrast"]])
def test_other_images_have_a_scale_of_their_own(names: list[str]) -> None:
    (clip, scale), _ = rules.intensities([channel(name) for name in names])
    assert clip["_target_"] == "monai.transforms.ClipIntensityPercentiles"
    assert (clip["lower"], clip["upper"]) == (0.5, 99.5)
    assert scale["_target_"] == "monai.transforms.NormalizeIntensity"
    assert scale["nonzero"] is False


def test_masked_images_are_scaled_by_what_is_not_masked() -> None:
    (_, scale), why = rules.intensities([channel("T1", zero_share=0.6)])
    assert scale["nonzero"] is True
    assert "60% of them are 0" in why
    (_, scale), _ = rules.intensities([channel("T1", zero_share=0.6), channel("T2")])
    assert scale["nonzero"] is False


def test_the_intensities_of_ct_are_those_without_air() -> None:
    tissue = np.linspace(-100, 300, 401)
    air = np.full(4000, -1000.0)
    found = channel_of("CT", [np.concatenate([air, tissue])])
    assert (found.low, found.median, found.high) == (-98.0, 100.0, 298.0)
    assert found.spread == pytest.approx(200 / 1.349)
    assert channel_of("MRI", [np.concatenate([air, tissue])]).median == -1000.0


def test_constant_and_missing_voxels_divide_by_nothing() -> None:
    for samples in ([], [np.zeros(0)], [np.full(9, 7.0)], [np.full(9, -1000.0)]):
        found = channel_of("CT", samples)
        assert found.spread > 0
        assert found.high > found.low


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 3}, r"data\.rules has no number 'step'; did you mean steps\? allowed are"),
        ({"steps": 0}, r"data\.rules\.steps is 0; it must be a whole number above 0"),
        ({"steps": 1.5}, r"data\.rules\.steps is 1\.5; it must be a whole number above 0"),
        ({"coverage": "x"}, r"data\.rules\.coverage is 'x'; it must be a number above 0"),
        ({"steps": True}, r"data\.rules\.steps is True"),
    ],
)
def test_numbers_that_cannot_be_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CPU.with_changes(changes)
    assert CPU.with_changes({"coverage": 1}).coverage == 1
