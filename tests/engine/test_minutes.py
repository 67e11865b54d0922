"""cost=minutes and when to stop, in a campaign through the front door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from alseg.data.formats.msd import read_msd
from tests.conftest import Outcome
from tests.engine.test_campaign import ANNOTATOR, PERSON, visit
from tests.oracles.unlabelled import move_labels_away

MINUTES = ANNOTATOR["MINUTES"]
SETTINGS = (
    *PERSON,
    "data/splits=growing",
    "cost=minutes",
    "pool.initial=3",
    "pool.query_size=2",
    "pool.rounds=5",
)


@pytest.fixture(scope="module")
def scans(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The phantoms without labels, except one that an MSD data set needs; and all labels."""
    hidden = sorted(read_msd(phantoms).cases)[1:]
    return move_labels_away(phantoms, tmp_path_factory.mktemp("scans"), hidden)


def test_measured_time_is_the_budget_and_the_run_says_when_to_stop(
    train: Callable[..., Outcome], scans: tuple[Path, Path]
) -> None:
    data, labels = scans
    # 3 + 2 + 2 volumes of 3.5 minutes; one of them may have its label in the data set, for 0
    outcome = train(*SETTINGS, f"data.task.root={data}", f"pool.budget={6 * MINUTES}")
    folder, waited = outcome.folder, 0
    while "wait for annotation" in outcome.out:
        waited += 1
        assert waited < 12, outcome.out
        if waited == 2:  # a person reads it before they annotate the first query
            said = (folder / "when_to_stop.txt").read_text()
            assert said.startswith("When to stop: with 3 labelled volumes the validation Dice")
            assert f"{MINUTES} minutes a volume so far" in said
            assert "Hardly any correction" not in said  # nothing has been proposed yet
            assert said.strip() in outcome.out
            again = train(resume=folder, smoke=False)  # nobody has annotated anything meanwhile
            assert said.strip() not in again.out
            assert f"When to stop: {folder / 'when_to_stop.txt'} says it" in again.out
        visit(folder, labels, with_mistakes=False)
        outcome = train(resume=folder, smoke=False)
        assert outcome.exit_code == 0, outcome.err
    assert "the budget is spent" in outcome.out
    metrics, queries = (pd.read_csv(folder / f"{n}.csv") for n in ("metrics", "queries"))
    assert len(metrics) == 3
    given = set(read_msd(data).labelled)
    assert queries["cost"].tolist() == [0 if i in given else MINUTES for i in queries["case_id"]]
    for row in metrics.itertuples():
        assert row.cost == queries.loc[queries["round"] < row.round, "cost"].sum()
    history = pd.read_csv(folder / "annotations" / "history.csv").dropna(subset="proposal_dice")
    n_good = (history["proposal_dice"] >= 0.95).sum()
    assert f"{n_good} of {len(history)} of all." in (folder / "when_to_stop.txt").read_text()


def test_a_run_waits_until_somebody_has_said_how_long_it_took(
    train: Callable[..., Outcome], scans: tuple[Path, Path]
) -> None:
    data, labels = scans
    outcome = train(*SETTINGS, f"data.task.root={data}", "pool.rounds=1")
    folder = outcome.folder
    visit(folder, labels, with_mistakes=False)
    answers = folder / "requests" / "initial" / "labels" / "final" / "answers.csv"
    table = answers.read_text()
    answers.unlink()
    waiting = train(resume=folder, smoke=False)
    assert waiting.exit_code == 0, waiting.err
    assert "nobody has said them for phantom_" in waiting.out
    assert f"resume={folder}" in waiting.out
    answers.write_text(table)
    finished = train(resume=folder, smoke=False)
    assert finished.exit_code == 0, finished.err
    assert (pd.read_csv(folder / "metrics.csv")["cost"] > 0).all()
