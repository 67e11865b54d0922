"""When to stop: the sentences after a round, by hand and by independent computation."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from alseg.active.when_to_stop import (
    N_RESAMPLES,
    corrections,
    interval_over_cases,
    minutes_per_volume,
    time_so_far,
)
from alseg.core.errors import ConfigError
from alseg.data.splits import split_by_fraction
from alseg.oracles.annotations import Annotation
from alseg.run.folder import STOPPING_FILE
from tests.bad_input import IDS, SHAPE, save, write_blobs
from tests.smoke_runs import run_smoke

NAN = float("nan")


def annotation(
    case: str,
    *,
    version: int = 1,
    minutes: float | None = None,
    request: str = "round_01",
    dice: float | None = None,
) -> Annotation:
    return Annotation(case, version, "", "Ada", "", minutes, "", "", request, request, dice)


def test_the_interval_is_of_means_over_classes_of_means_over_drawn_cases() -> None:
    dice = np.array([[0.9, 0.5], [0.8, NAN], [0.7, 0.1], [0.95, 0.6], [0.6, NAN]])
    rng = np.random.default_rng(3)
    means = []
    for drawn in rng.integers(5, size=(N_RESAMPLES, 5)):
        by_class = [column[~np.isnan(column)] for column in dice[drawn].T]
        means.append(np.mean([values.mean() for values in by_class if len(values)]))
    expected = (np.quantile(means, 0.025), np.quantile(means, 0.975))
    assert interval_over_cases(dice, seed=3) == pytest.approx(expected)


def test_the_interval_of_many_cases_is_that_of_the_normal_distribution() -> None:
    dice = np.random.default_rng(0).normal(0.8, 0.1, size=(400, 1))
    low, high = interval_over_cases(dice, seed=1)
    half = 1.96 * dice.std() / 20
    assert (low, high) == pytest.approx((dice.mean() - half, dice.mean() + half), abs=0.001)


def test_a_class_that_no_case_has_and_too_few_cases_have_no_interval() -> None:
    only_one = np.array([[0.9, NAN], [0.8, NAN], [0.7, NAN], [0.6, NAN], [0.9, NAN]])
    assert interval_over_cases(only_one, 1) == interval_over_cases(only_one[:, :1], 1)
    assert interval_over_cases(only_one[:4], 1) is None


def test_minutes_are_the_total_of_a_case_and_count_once() -> None:
    history = [
        annotation("a", minutes=10.0),
        annotation("b", minutes=4.0),
        annotation("a", version=2, minutes=12.0),
        annotation("b", version=2),  # nobody has said anything new of it
    ]
    assert minutes_per_volume(history) == 8.0
    assert time_so_far(history) == ("Annotation has taken 8.0 minutes a volume so far.",)
    (sentence,) = time_so_far([*history, annotation("c")])
    assert sentence == (
        "Annotation has taken 8.0 minutes a volume so far (the mean of 2 of 3 volumes; of the "
        "others nobody has said it)."
    )
    assert time_so_far([annotation("c")]) == time_so_far([]) == ()


def test_proposals_that_needed_hardly_any_correction_are_counted_by_their_newest_label() -> None:
    first = [annotation("a", request="initial"), annotation("b", dice=0.95)]
    assert corrections(first) == (
        "Hardly any correction (Dice with the label of at least 0.95) was needed by 1 of 1 "
        "proposals of the last query.",
    )
    later = [
        *first,
        annotation("b", version=2, dice=0.90),
        annotation("c", request="round_02", dice=0.99),
        annotation("d", request="round_02", dice=0.94),
    ]
    (sentence,) = corrections(later)
    assert sentence.endswith("1 of 2 proposals of the last query, and 1 of 3 of all.")
    assert corrections([annotation("a", request="initial")]) == corrections([]) == ()


@pytest.mark.parametrize("splits", ["fraction", "growing"])
def test_each_round_of_a_simulation_ends_with_a_paragraph(
    splits: str, shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = (
        f"data/splits={splits}", "pool.initial=2", "pool.query_size=1", "pool.rounds=5",
        "steps_per_round=1", "val_interval=1", "target_dice=1.0", "data.num_workers=0",
    )  # fmt: skip
    run_smoke(tmp_path, shared, *settings)
    paragraphs = [
        r.getMessage() for r in caplog.records if r.getMessage().startswith("When to stop")
    ]
    assert len(paragraphs) == 5
    for number, paragraph in enumerate(paragraphs):
        assert f"with {2 + number} labelled volumes the " in paragraph
        has_test_part = "the test Dice is" in paragraph
        assert has_test_part == (splits == "fraction")
        assert ("validation Dice (no test part)" in paragraph) != has_test_part
        assert "minutes" not in paragraph
        assert "correction" not in paragraph
    assert all("1 more labelled volume would bring" in paragraph for paragraph in paragraphs[:3])
    assert all("cannot be said before 4 rounds" in paragraph for paragraph in paragraphs[:3])
    assert all("Target: " in paragraph for paragraph in paragraphs[3:])
    assert (tmp_path / STOPPING_FILE).read_text(encoding="utf-8") == f"{paragraphs[-1]}\n"


def test_only_cases_with_a_dice_are_counted(shared: Path, tmp_path: Path) -> None:
    blobs = write_blobs(tmp_path / "blobs")
    without, other = split_by_fraction(IDS, validation=0.15, test=0.25, seed=0).test[:2]
    save(blobs / "labelsTr" / f"{without}.nii.gz", np.zeros(SHAPE, np.uint8))
    settings = (
        f"data.task.root={blobs}", "data.preprocess=[]", "data.patch_size=[16,16,16]",
        "data.splits.validation=0.15", "data.splits.test=0.25", "strategy=random",
        "pool.rounds=1", "steps_per_round=1", "val_interval=1",
    )  # fmt: skip
    run_smoke(tmp_path / "run", shared, *settings)
    cases = pd.read_csv(tmp_path / "run/rounds/round_01/cases.csv", index_col="case_id")
    assert cases.loc[[without, other], "dice_blob"].isna().tolist() == [True, False]
    assert "(of 1 case, too few for an interval)" in (tmp_path / "run/when_to_stop.txt").read_text()


def test_the_target_is_checked(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="target_dice is 2; it must be null or a number above 0 and at most 1"
    ):
        run_smoke(tmp_path, shared, "target_dice=2")
