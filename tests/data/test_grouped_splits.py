"""data.groups: cases that belong together stay in one part and in one fold."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alseg.core.errors import ConfigError
from alseg.core.groups import grouped_by
from alseg.data.folds import CrossValidation
from alseg.data.splits import Splits, annotated_split, growing_split, split_by_fraction

PATIENT = r"patient\d+"


def scans(sizes: Sequence[int]) -> list[str]:
    """Ids of as many scans of each patient."""
    return [
        f"patient{patient:03d}_scan{scan}" for patient, n in enumerate(sizes) for scan in range(n)
    ]


def patients(case_ids: Sequence[str]) -> set[str]:
    return set(map(grouped_by(PATIENT), case_ids))


def parts_of(splits: Splits) -> list[tuple[str, ...]]:
    return [splits.training, splits.validation, splits.test]


def test_a_group_is_what_the_expression_finds_or_the_case_itself() -> None:
    assert [*map(grouped_by(PATIENT), ("patient001_a", "patient001_b", "x_patient001"))] == [
        "patient001", "patient001", "x_patient001",
    ]  # fmt: skip
    assert [*map(grouped_by("(a)?.*"), ("ab", "b"))] == ["a", "b"]
    assert grouped_by(None)("patient001_a") == "patient001_a"
    for pattern in ("(p", 5):
        with pytest.raises(ConfigError, match="it must be a regular expression of case ids"):
            grouped_by(pattern)  # type: ignore[arg-type]


@given(sizes=st.lists(st.integers(1, 4), min_size=40, max_size=60), seed=st.integers(0, 50))
def test_a_patient_is_in_one_part_and_shares_are_met_to_half_a_patient(
    sizes: list[int], seed: int
) -> None:
    ids = scans(sizes)
    splits = split_by_fraction(ids, validation=0.15, test=0.25, seed=seed, groups=PATIENT)
    training, validation, test = parts_of(splits)
    assert sorted([*training, *validation, *test]) == ids
    assert sum(map(len, map(patients, parts_of(splits)))) == len(sizes)
    assert abs(len(validation) - round(0.15 * len(ids))) <= max(sizes) / 2
    assert abs(len(test) - round(0.25 * len(ids))) <= max(sizes) / 2


def test_cases_that_are_groups_of_their_own_are_split_as_without_groups() -> None:
    ids = scans([1] * 23)
    shares = {"validation": 0.15, "test": 0.25, "seed": 7}
    plain, grouped = (split_by_fraction(ids, **shares, groups=g) for g in (None, PATIENT))
    assert parts_of(plain) == parts_of(grouped)
    growing = [growing_split(ids, validation_share=0.3, seed=1, groups=g) for g in (None, ".*")]
    assert growing[0].parts(ids) == growing[1].parts(ids)
    assert CrossValidation(5).parts(ids) == CrossValidation(5, ".*").parts(ids)


def test_a_patient_of_half_of_all_scans_trains() -> None:
    for seed in range(20):
        ids = scans([50, *[1] * 50])
        splits = split_by_fraction(ids, validation=0.2, test=0.2, seed=seed, groups=PATIENT)
        assert "patient000" in patients(splits.training)
        assert [len(part) for part in parts_of(splits)] == [60, 20, 20]


def test_shares_into_which_no_patient_fits_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"30 cases in 3 groups of data.groups with validation=0"):
        split_by_fraction(scans([10] * 3), validation=0.1, test=0.3, seed=0, groups=PATIENT)
    with pytest.raises(ConfigError, match=r"30 cases with validation=0.01 and test=0.3$"):
        split_by_fraction(scans([10] * 3), validation=0.01, test=0.3, seed=0)


def test_all_scans_of_a_patient_validate_or_all_train_in_a_growing_split() -> None:
    ids = scans([3] * 100)
    splits = growing_split(ids, validation_share=0.25, seed=0, groups=PATIENT)
    parts = splits.parts(ids)
    assert not patients(parts.training) & patients(parts.validation)
    assert 0.1 < len(parts.validation) / len(ids) < 0.4


def test_all_scans_of_a_patient_are_in_one_fold_and_folds_are_alike_in_size() -> None:
    ids = scans([1, 7, 2, 4, 1, 3, 2, 6, 1, 1])
    folds = CrossValidation(4, PATIENT).parts(ids)
    assert sorted(i for fold in folds for i in fold.validation) == ids
    for fold in folds:
        assert sorted(fold.training + fold.validation) == ids
        assert not patients(fold.training) & patients(fold.validation)
    assert [len(fold.validation) for fold in folds] == [7, 7, 7, 7]
    assert len(CrossValidation(5, PATIENT).parts(scans([3, 3, 3]))) == 3
    assert CrossValidation(4, PATIENT).parts(ids[::-1])[0].validation == folds[0].validation


def test_an_initial_pool_of_one_patient_gets_a_case_of_another_where_cases_cross_validate() -> None:
    ids = scans([4, 2, 2])
    splits = annotated_split(ids, groups=PATIENT)
    assert splits.lacks(ids[:3]) == "validate"
    initial = splits.with_all_parts(ids[:3], seed=1)
    assert initial[:2] == tuple(ids[:2])
    assert patients(initial) > {"patient000"}
    assert len({splits.with_all_parts(ids[:3], seed)[2] for seed in range(20)}) > 2
    assert splits.lacks(initial) == ""
    assert splits.with_all_parts(ids[3:6], seed=1) == tuple(ids[3:6])
    assert annotated_split(ids[:4], groups=PATIENT).with_all_parts(ids[:3], 1) == tuple(ids[:3])
