"""data/splits=growing: which of the annotated cases validate."""

from __future__ import annotations

import pytest

from alseg.core.errors import ConfigError
from alseg.data.splits import GrowingSplits, growing_split, split_by_fraction

IDS = [f"case_{number:03d}" for number in range(400)]


def split(share: float = 0.25, seed: int = 0) -> GrowingSplits:
    return growing_split(IDS, validation_share=share, seed=seed)


def test_all_cases_are_in_the_pool() -> None:
    splits = growing_split(reversed(IDS), validation_share=0.25, seed=0)
    assert splits == split()
    assert splits.training == tuple(IDS)
    assert splits.validation == splits.test == ()


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_about_the_share_validates(share: float) -> None:
    validating = split(share).parts(IDS).validation
    # three standard deviations of a binomial count of 400
    assert len(validating) / 400 == pytest.approx(share, abs=3 * (share * (1 - share) / 400) ** 0.5)


def test_the_parts_of_more_cases_hold_the_parts_of_fewer() -> None:
    few, many = split().parts(IDS[:40]), split().parts(IDS[:300])
    assert set(few.validation) <= set(many.validation)
    assert many.training[: len(few.training)] == few.training
    # nor do scans that are added to the folder change anything
    later = growing_split([*IDS, "later"], validation_share=0.25, seed=0)
    assert later.parts(IDS) == split().parts(IDS)


def test_a_case_trains_or_validates_and_a_repeated_one_trains_twice() -> None:
    parts = split().parts(IDS)
    assert sorted(parts.training + parts.validation) == IDS
    repeated = split().parts([*IDS, parts.training[0], parts.validation[0]])
    assert repeated.training == (*parts.training, parts.training[0])
    assert repeated.validation == parts.validation


def test_another_seed_lets_other_cases_validate() -> None:
    assert split(seed=1).parts(IDS).validation != split().parts(IDS).validation


@pytest.mark.parametrize("missing", ["training", "validation"])
def test_the_last_case_of_an_initial_pool_makes_room_for_the_part_that_has_none(
    missing: str,
) -> None:
    splits = split()
    parts = splits.parts(IDS)
    chosen = parts.validation[:3] if missing == "training" else parts.training[:3]
    initial = splits.with_all_parts(chosen, seed=1)
    assert initial[:2] == chosen[:2]
    assert len(initial) == 3
    assert initial[2] in getattr(parts, missing)
    assert splits.with_all_parts(initial, seed=1) == initial
    drawn = {splits.with_all_parts(chosen, seed)[2] for seed in range(20)}
    assert len(drawn) > 5


def test_a_fixed_split_takes_the_initial_pool_as_it_is() -> None:
    fixed = split_by_fraction(IDS, validation=0.2, test=0.2, seed=0)
    annotated = (*fixed.training[:3], fixed.training[0])
    assert fixed.with_all_parts(annotated, seed=1) == annotated
    assert fixed.parts(annotated).training == annotated
    assert fixed.parts(annotated).validation == fixed.validation


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="validation_share is 1;"):
        growing_split(IDS, validation_share=1, seed=0)
    with pytest.raises(ConfigError, match=r"seed is -1"):
        growing_split(IDS, validation_share=0.25, seed=-1)
    with pytest.raises(ConfigError, match="no case to validate with: of 2 cases"):
        growing_split(IDS[:2], validation_share=1e-6, seed=0)
    with pytest.raises(ConfigError, match="no case to train with: of 2 cases"):
        growing_split(IDS[:2], validation_share=1 - 1e-6, seed=0)
