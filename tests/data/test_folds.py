"""validation=cross: which cases each fold's network trains with, and judges."""

from __future__ import annotations

import pytest

from alseg.core.errors import ConfigError
from alseg.data.folds import CrossValidation

IDS = [f"case_{number:03d}" for number in range(23)]


@pytest.mark.parametrize("n_cases", [2, 3, 5, 10, 12, 23])
def test_each_case_is_judged_once_and_folds_differ_in_size_by_one_at_most(n_cases: int) -> None:
    cases = IDS[:n_cases]
    folds = CrossValidation(5).parts(cases)
    assert len(folds) == min(5, n_cases)
    assert sorted(i for fold in folds for i in fold.validation) == cases
    sizes = [len(fold.validation) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    for fold in folds:
        assert sorted(fold.training + fold.validation) == cases


def test_the_order_of_acquisition_decides_no_fold_and_neighbours_are_dealt_apart() -> None:
    folds = CrossValidation(5).parts(IDS)
    backwards = CrossValidation(5).parts(IDS[::-1])
    assert [f.validation for f in folds] == [f.validation for f in backwards]
    assert folds[0].validation not in (tuple(IDS[:5]), tuple(IDS[::5]))


def test_a_repeated_case_trains_twice_and_is_judged_once() -> None:
    folds = CrossValidation(3).parts([*IDS, IDS[0]])
    (own,) = [fold for fold in folds if IDS[0] in fold.validation]
    assert own.validation.count(IDS[0]) == 1
    assert IDS[0] not in own.training
    assert all(fold.training.count(IDS[0]) == 2 for fold in folds if fold is not own)


@pytest.mark.parametrize("folds", [1, 2.5, True, "five"])
def test_fewer_than_two_folds_are_refused(folds: object) -> None:
    with pytest.raises(ConfigError, match=r"validation\.folds is"):
        CrossValidation(folds)  # type: ignore[arg-type]
