import math

import numpy as np
import pytest
import torch

from alseg.core.area_under_curve import area_under_budget_curve
from alseg.training.metrics import Calibration, CaseMetrics, hard_labels


def volume(*values: int) -> torch.Tensor:
    return torch.tensor(values).reshape(1, 1, 1, 2, -1)


def test_dice_by_hand() -> None:
    dice = CaseMetrics(["liver", "tumour"])
    # liver: 2 of 3 predicted voxels right, label has 2 -> 2*2/5; tumour: 0 of 1
    dice.update("a", volume(1, 1, 1, 0), volume(1, 1, 2, 0))
    dice.update("b", volume(1, 0, 2, 2), volume(1, 0, 2, 2))
    assert dice.rows["a"] == pytest.approx([0.8, 0.0])
    assert dice.rows["b"] == pytest.approx([1.0, 1.0])
    assert dice.by_class() == pytest.approx({"liver": 0.9, "tumour": 0.5})
    assert dice.mean() == pytest.approx(0.7)
    assert dice.table()["case_id"].tolist() == ["a", "b"]


def test_a_class_that_a_case_has_not_is_left_out() -> None:
    dice = CaseMetrics(["liver", "tumour"])
    dice.update("a", volume(1, 0, 2, 0), volume(1, 0, 0, 0))
    dice.update("b", volume(1, 0, 2, 0), volume(1, 0, 2, 0))
    assert math.isnan(dice.rows["a"][1])
    assert dice.by_class()["tumour"] == 1.0
    only = CaseMetrics(["liver", "tumour"])
    only.update("a", volume(1, 0, 0, 0), volume(1, 0, 0, 0))
    assert math.isnan(only.by_class()["tumour"])
    assert only.mean() == 1.0


def test_dice_agrees_with_set_arithmetic_on_random_volumes() -> None:
    rng = np.random.default_rng(0)
    prediction, label = rng.integers(0, 3, (2, 1, 1, 7, 6, 5))
    dice = CaseMetrics(["x", "y"])
    dice.update("a", torch.from_numpy(prediction), torch.from_numpy(label))
    for index, value in enumerate(dice.rows["a"], start=1):
        p, t = prediction == index, label == index
        assert value == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))


def test_area_under_the_budget_curve_by_hand() -> None:
    assert area_under_budget_curve([5, 10, 20], [0.4, 0.6, 0.8]) == pytest.approx(
        (0.5 * 5 + 0.7 * 10) / 15
    )
    assert area_under_budget_curve([7], [0.3]) == 0.3
    assert area_under_budget_curve([1, 9], [0.5, 0.5]) == pytest.approx(0.5)
    # a round that labelled nothing new adds no area
    assert area_under_budget_curve([5, 5, 10], [0.1, 0.4, 0.6]) == pytest.approx(0.5)
    assert area_under_budget_curve([2, 2], [0.1, 0.2]) == 0.2
    for budgets, dice in (([], []), ([1, 2], [0.1]), ([3, 2], [0.1, 0.2])):
        with pytest.raises(ValueError, match="budgets"):
            area_under_budget_curve(budgets, dice)


def test_hard_labels_take_the_most_likely_class() -> None:
    logits = torch.randn(2, 3, 4, 5, 6)
    labels = hard_labels(logits)
    assert labels.shape == (2, 1, 4, 5, 6)
    assert torch.equal(labels[:, 0], logits.argmax(1))


def test_calibration_by_hand() -> None:
    calibration = Calibration()
    # four voxels of two classes: p(class 1) = .9, .9, .5 (a tie goes to class 0), 0
    probability = torch.tensor([0.9, 0.9, 0.5, 0.0]).reshape(1, 1, 1, 2, 2)
    logits = torch.cat([1 - probability, probability], dim=1).log()
    calibration.update("a", logits, volume(1, 0, 0, 0))
    table = calibration.table()
    filled = table[table["n_voxels"] > 0]
    assert len(table) == 15
    assert filled["bin_low"].tolist() == pytest.approx([7 / 15, 13 / 15, 14 / 15])
    assert filled["bin_high"].tolist() == pytest.approx([8 / 15, 14 / 15, 1])
    assert filled["n_voxels"].tolist() == [1, 2, 1]
    assert filled["confidence"].tolist() == pytest.approx([0.5, 0.9, 1.0])
    assert filled["accuracy"].tolist() == pytest.approx([1.0, 0.5, 1.0])
    assert table["accuracy"].isna().sum() == 12

    calibration.update("a", logits, volume(1, 0, 0, 0))  # a case counts once
    calibration.update("b", logits, volume(0, 0, 0, 0))
    assert calibration.table()["n_voxels"].sum() == 8
    assert calibration.table()["accuracy"].iloc[13] == 0.25
    calibration.reset()
    assert calibration.sums == {}
