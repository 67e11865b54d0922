"""data/splits=growing: which of the annotated cases validate."""

from __future__ import annotations

import pytest

from alseg.core.errors import ConfigError
from alseg.data.splits import GrowingSplits, annotated_split, growing_split, split_by_fraction

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


@pytest.mark.parametrize(
    ("n_validating", "n_training", "wanted"),
    [(0, 3, 1), (3, 0, 1), (0, 8, 2), (1, 7, 2), (5, 3, 2), (2, 6, 2), (0, 2, 1), (2, 0, 1)],
)
def test_the_last_cases_of_an_initial_pool_make_room_until_the_share_validates(
    n_validating: int, n_training: int, wanted: int
) -> None:
    splits = split()
    parts = splits.parts(IDS)
    chosen = (*parts.training[:n_training], *parts.validation[:n_validating])
    initial = splits.with_all_parts(chosen, seed=1)
    assert len(set(initial)) == len(initial) == len(chosen)
    assert len(splits.parts(initial).validation) == wanted
    n_new = abs(wanted - n_validating)
    surplus, other = (
        (parts.training[:n_training], parts.validation)
        if wanted > n_validating
        else (parts.validation[:n_validating], parts.training)
    )
    leaving = set(surplus[len(surplus) - n_new :])
    assert initial[: len(chosen) - n_new] == tuple(i for i in chosen if i not in leaving)
    assert set(initial[len(chosen) - n_new :]) <= set(other)
    assert splits.with_all_parts(initial, seed=1) == initial
    drawn = {splits.with_all_parts(chosen, seed)[-n_new:] for seed in range(20)}
    assert n_new == 0 or len(drawn) > 5


def test_a_pool_with_too_few_cases_of_a_part_gives_those_that_it_has() -> None:
    parts = split().parts(IDS)
    few = (*parts.training[:10], parts.validation[0])
    splits = growing_split(few, validation_share=0.25, seed=0)
    initial = splits.with_all_parts(parts.training[:8], seed=1)
    assert initial == (*parts.training[:7], parts.validation[0])


def test_a_fixed_split_takes_the_initial_pool_as_it_is() -> None:
    fixed = split_by_fraction(IDS, validation=0.2, test=0.2, seed=0)
    annotated = (*fixed.training[:3], fixed.training[0])
    assert fixed.with_all_parts(annotated, seed=1) == annotated
    assert fixed.parts(annotated).training == annotated
    assert fixed.parts(annotated).validation == fixed.validation
    assert fixed.lacks(annotated) == ""
    assert fixed.lacks([]) == "train"


def test_without_a_validation_part_all_that_is_annotated_trains_and_two_cases_are_needed() -> None:
    for splits in (annotated_split(IDS), split_by_fraction(IDS, validation=0, test=0.2, seed=0)):
        parts = splits.parts(splits.training[:3])
        assert (parts.training, parts.validation) == (splits.training[:3], ())
        assert splits.fewest_annotated == 2
        assert [splits.lacks(IDS[:n]) for n in range(3)] == ["train", "validate", ""]
    assert annotated_split(reversed(IDS)).training == tuple(IDS)


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="validation_share is 1;"):
        growing_split(IDS, validation_share=1, seed=0)
    with pytest.raises(ConfigError, match=r"seed is -1"):
        growing_split(IDS, validation_share=0.25, seed=-1)
    with pytest.raises(ConfigError, match="no case to validate with: of 2 cases"):
        growing_split(IDS[:2], validation_share=1e-6, seed=0)
    with pytest.raises(ConfigError, match="no case to train with: of 2 cases"):
        growing_split(IDS[:2], validation_share=1 - 1e-6, seed=0)
