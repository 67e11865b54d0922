"""The summary at the end of a run, on a narrow terminal and with many classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from rich.console import Console

from alseg.active.reports import classes_table, rounds_table, without_labels
from alseg.core.pool import Pool
from alseg.run.state import RunState
from alseg.system.console import console, fits

LONG = [f"class {n} with a very long [name] of a structure" for n in range(15)]


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COLUMNS", "80")
    console.cache_clear()
    yield
    console.cache_clear()


def state(classes: Sequence[str], n_rounds: int) -> RunState:
    history = tuple(
        {"round": r, "labelled": 5 * r, "cost": 5.0 * r, "val_dice": 0.5, "test_dice": 0.25}
        | {f"test_dice_{name}": r / 100 + index / 1000 for index, name in enumerate(classes)}
        for r in range(1, n_rounds + 1)
    )
    timings = ({"training_seconds": 1.0, "scoring_seconds": 2.0},) * n_rounds
    return RunState(
        Pool((), ()), "hash", finished_rounds=n_rounds, history=history, timings=timings
    )


def printed(table: object) -> list[str]:
    narrow = Console(width=80)
    with narrow.capture() as capture:
        narrow.print(table)
    return capture.get().splitlines()


def test_few_classes_stand_beside_the_means() -> None:
    table = rounds_table(state(["liver", "tumour"], 2), "CT, variance, seed 1", ["liver", "tumour"])
    assert fits(table)
    lines = printed(table)
    assert "tumour" in lines[2]
    assert "0.021" in lines[-2]  # round 2, second class


@pytest.mark.parametrize("n_rounds", [1, 4, 40])
def test_many_long_classes_have_a_table_of_their_own(n_rounds: int) -> None:
    run = state(LONG, n_rounds)
    assert not fits(rounds_table(run, "CT, variance, seed 1", LONG))
    assert fits(rounds_table(run, "CT, variance, seed 1"))
    lines = printed(classes_table(run, LONG))
    assert max(map(len, lines)) <= 80
    text = "".join("".join(line.split("│")[1:2]).strip() + " " for line in lines)
    assert all(name in " ".join(text.split()) for name in LONG)  # in full, on several lines
    assert str(5 * n_rounds) in lines[2]  # the last round is always there
    assert f"{n_rounds / 100 + 0.014:.3f}" in "".join(lines)
    assert "…" not in "".join(lines)


def test_classes_that_no_test_label_holds_are_named() -> None:
    run = state(["liver", "tumour"], 1)
    assert without_labels(run, ["liver", "tumour"]) == []
    run.history[-1]["test_dice_tumour"] = float("nan")
    assert without_labels(run, ["liver", "tumour"]) == ["tumour"]
