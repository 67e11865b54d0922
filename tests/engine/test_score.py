"""``python -m alseg.score`` through its front door, with a network that is really trained."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from alseg.engine import score as module
from alseg.engine.score_tables import ScoreTable, rows_of, top_of
from tests.conftest import Outcome
from tests.run_folders import change_cell, settle
from tests.smoke_runs import run_smoke

# no resampling: the scans of a folder are read as those of the data set
EXACT = (
    "data.preprocess=[{_target_:monai.transforms.Orientation,axcodes:RAS,labels:null},"
    "{_target_:monai.transforms.ScaleIntensityRange,a_min:-20,a_max:180,b_min:0,b_max:1}]"
)
QUICK = (EXACT, "steps_per_round=4", "val_interval=4", "data.num_workers=0")
Score = Callable[..., Outcome]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """The folder of a run of two rounds, whose first has scored its pool."""
    folder = tmp_path_factory.mktemp("run")
    run_smoke(folder, shared, "strategy=variance", *QUICK)
    return folder


@pytest.fixture(scope="module")
def noted(run: Path) -> pd.Series:
    """The scores of the run's own first round, by case."""
    table = pd.read_csv(run / "rounds/round_01/scores.csv")
    return table.set_index("case_id")["score"]


@pytest.fixture
def archive(noted: pd.Series, run: Path, shared: Path, tmp_path: Path) -> Path:
    """A folder of the scans that the round has scored."""
    (dataset,) = shared.rglob("dataset.json")
    folder = tmp_path / "archive"
    folder.mkdir()
    for case_id in noted.index:
        shutil.copy(dataset.parent / "imagesTr" / f"{case_id}.nii.gz", folder)
    return folder


@pytest.fixture
def score(
    run: Path,
    archive: Path,
    tmp_path: Path,
    call_entry_point: Callable[..., tuple[int, str, str]],
) -> Score:
    """Call ``python -m alseg.score RUN images=archive output=out round=1`` in this process."""
    from alseg.score import main

    def call(*overrides: str, of: Path = run, output: str = "out") -> Outcome:
        folder = tmp_path / output
        arguments = [str(of), f"images={archive}", f"output={folder}", "round=1", "trainer=cpu"]
        options = [each for each in overrides if each.startswith("-")]  # these come first
        settings = [each for each in overrides if each not in options]
        return Outcome(*call_entry_point(main, *options, *arguments, *settings), folder)

    return call


def scores_in(folder: Path) -> dict[str, float]:
    rows = [row for path in sorted(folder.glob("scores_*.csv")) for row in rows_of(path)]
    assert len({row["case"] for row in rows}) == len(rows)
    return {row["case"]: float(row["score"]) for row in rows if row["status"] == "done"}


def test_scores_are_those_of_the_runs_own_round(score: Score, noted: pd.Series) -> None:
    done = score()
    assert done.exit_code == 0, done.err
    assert scores_in(done.folder) == noted.to_dict()
    top = pd.read_csv(done.folder / "top.csv")
    assert top["case"].tolist() == noted.sort_values(ascending=False).index.tolist()
    assert top["rank"].tolist() == list(range(1, len(noted) + 1))
    assert f"scored {len(noted)} scans by variance with the network of round 1" in done.out


def test_the_members_of_an_ensemble_score_as_in_their_round(
    score: Score, shared: Path, tmp_path: Path, noted: pd.Series
) -> None:
    folder = tmp_path / "ensemble"
    run_smoke(folder, shared, "strategy=entropy", "uncertainty=ensemble", *QUICK)
    table = pd.read_csv(folder / "rounds/round_01/scores.csv").set_index("case_id")["score"]
    done = score(of=folder)
    assert done.exit_code == 0, done.err
    assert set(table.index) == set(noted.index)  # of the same pool
    assert scores_in(done.folder) == table.to_dict()
    last = score("round=2", of=folder, output="last")
    assert last.exit_code == 2
    assert "choose such a round with round=N" in last.err


def test_shards_of_several_processes_are_those_of_one(score: Score, noted: pd.Series) -> None:
    first = score("shards=3", "shard=0", "top=2")
    assert first.exit_code == 0, first.err
    assert 0 < len(scores_in(first.folder)) < len(noted)
    rest = score("-m", "shards=3", "shard=1,2", "top=2")
    assert rest.exit_code == 0, rest.err
    assert scores_in(rest.folder) == noted.to_dict()
    assert len(list(rest.folder.glob("scores_*_of_0003.csv"))) == 3
    top = pd.read_csv(rest.folder / "top.csv")
    assert top["case"].tolist() == noted.nlargest(2).index.tolist()


def test_a_scan_that_cannot_be_used_does_not_stop_the_other_shards(
    score: Score, archive: Path, noted: pd.Series
) -> None:
    bad = noted.index[0]
    (archive / f"{bad}.nii.gz").write_bytes(b"no image")
    done = score("-m", "shards=2", "shard=0,1")
    assert done.exit_code == 2
    assert f"1 scan could not be scored: {bad}" in done.err
    assert scores_in(done.folder) == noted.drop(bad).to_dict()
    assert score("shards=2").exit_code == 2  # it is looked at again


def test_names_and_links_that_cannot_be_used_are_rows_and_the_others_are_scored(
    score: Score, archive: Path, noted: pd.Series
) -> None:
    scan = archive / f"{noted.index[0]}.nii.gz"
    (archive / "gone.nii.gz").symlink_to(archive.parent / "nowhere.nii.gz")
    (archive / "round.nii.gz").symlink_to(archive / "round.nii.gz")
    for name in ("two\nlines.nii.gz", b"no text \xff.nii.gz".decode(errors="surrogateescape")):
        shutil.copy(scan, archive / name)
    for name in ("twice.nii.gz", "twice.nii"):
        shutil.copy(scan, archive / name)
    done = score()
    assert done.exit_code == 2
    assert "5 scans could not be scored: gone, no text" in done.err
    assert scores_in(done.folder) == noted.to_dict()
    rows = {row["case"]: row for path in done.folder.glob("scores_*") for row in rows_of(path)}
    refused = {case: row["message"] for case, row in rows.items() if row["status"] == "refused"}
    assert set(refused) == {"gone", "round", "twice", r"two\nlines", r"no text \udcff"}
    assert "which is not there" in refused["gone"]
    assert "cannot be printed; rename the file" in refused[r"two\nlines"]
    assert "twice.nii and twice.nii.gz both give the id twice" in refused["twice"]
    for path in archive.iterdir():
        if path.name.removesuffix(".gz").removesuffix(".nii") not in noted.index:
            path.unlink()
    again = score()
    assert again.exit_code == 0, again.err
    assert scores_in(again.folder) == noted.to_dict()


def test_what_was_killed_continues_and_scores_no_scan_twice(
    run: Path, archive: Path, score: Score, noted: pd.Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = archive.parent / "out"
    killed = (
        "import os, signal, sys\n"
        "from alseg.engine.score_tables import ScoreTable\n"
        "append = ScoreTable.append\n"
        "def two(self, *row, **values):\n"
        "    append(self, *row, **values)\n"
        "    two.left -= 1\n"
        "    two.left or os.kill(os.getpid(), signal.SIGKILL)\n"
        "two.left, ScoreTable.append = 2, two\n"
        "from alseg.score import main\n"
        "main()\n"
    )
    settings = [f"images={archive}", f"output={out}", "round=1", "trainer=cpu"]
    command = [sys.executable, "-c", killed, str(run), *settings]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(command, env=environment, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert len(scores_in(out)) == 2
    (table,) = out.glob("scores_*.csv")
    with table.open("ab") as file:
        file.write(f"{noted.index[-1]},done,0.1".encode())  # a row that is cut off
    looked_at: list[str] = []
    look_at = module.Scorer.look_at

    def watched(self: module.Scorer, case_id: str, batch: dict) -> None:
        looked_at.append(case_id)
        look_at(self, case_id, batch)

    monkeypatch.setattr(module.Scorer, "look_at", watched)
    done = score()
    assert done.exit_code == 0, done.err
    assert len(looked_at) == len(noted) - 2
    assert scores_in(done.folder) == noted.to_dict()
    assert score().exit_code == 0
    assert len(looked_at) == len(noted) - 2


def test_a_scan_that_changed_is_scored_again_and_one_that_has_gone_leaves(
    score: Score, archive: Path, noted: pd.Series
) -> None:
    score()
    changed, gone, other = noted.index[:3]
    shutil.copy(archive / f"{other}.nii.gz", archive / f"{changed}.nii.gz")
    (archive / f"{gone}.nii.gz").unlink()
    found = scores_in(score().folder)
    assert set(found) == set(noted.index) - {gone}
    assert found[changed] != noted[changed]
    assert found[other] == noted[other]


def test_another_strategy_scores_and_one_without_a_score_is_refused(
    score: Score, noted: pd.Series
) -> None:
    done = score("strategy=margin", output="margin")
    assert done.exit_code == 0, done.err
    assert set(scores_in(done.folder)) == set(noted.index)
    assert scores_in(done.folder) != noted.to_dict()
    for name, reason in (("random", "gives a volume no score"), ("oracle_dice", "reads labels")):
        refused = score(f"strategy={name}", output=name)
        assert refused.exit_code == 2
        assert f"the strategy {name} {reason}" in refused.err


def test_a_strategy_of_a_run_folder_builds_nothing_that_is_not_trusted(
    score: Score, run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = copy / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert "alseg.strategies.strategy.Strategy" in text
    config.write_text(text.replace("alseg.strategies.strategy.Strategy", "os.system"))
    settle(copy)
    refused = score(of=copy)
    assert refused.exit_code == 2
    assert "strategy._target_ is 'os.system'" in refused.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("shards=2", "shard=2"), "shard is 2 of shards=2; they are numbered from 0"),
        (("shards=0",), "shards is 0"),
        (("top=0",), "top is 0"),
        (("round=9",), "round is 9"),
    ],
)
def test_settings_that_cannot_be_used_are_reported(
    score: Score, overrides: tuple[str, ...], message: str
) -> None:
    done = score(*overrides)
    assert done.exit_code == 2
    assert message in done.err
    assert not done.folder.exists()


def test_an_output_keeps_to_what_it_was_begun_with(score: Score) -> None:
    assert score("shards=2", "shard=0").exit_code == 0
    other = score("shards=3")
    assert other.exit_code == 2
    assert "was begun with shards 2, and this is shards 3" in other.err
    assert "begun with round 1, and this is round 2" in score("shards=2", "round=2").err
    assert "begun with strategy variance" in score("shards=2", "strategy=margin").err


def test_a_shard_is_scored_by_one_process(score: Score, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with module.locked_shard(tmp_path / "out", 0):
        busy = score()
    assert busy.exit_code == 2
    assert "is being scored by another process" in busy.err


def test_the_top_is_that_of_sorting_all_rows(tmp_path: Path) -> None:
    values = [(f"case_{i:03d}", ((i * 37) % 50) / 7) for i in range(200)]
    for shard in range(3):
        table = ScoreTable(tmp_path, shard, 3)
        table.keep(lambda row: True)
        for case_id, value in values[shard::3]:
            table.append(case_id, "done", score=value, made_of="x")
        table.append(f"bad_{shard}", "refused", message="two\nlines, and a comma", made_of="x")
    top, n_scored = top_of(sorted(tmp_path.glob("scores_*.csv")), 7)
    expected = sorted(values, key=lambda pair: (-pair[1], pair[0]))[:7]
    assert [(case, score) for _, case, score in top] == expected
    assert n_scored == 200
    with ScoreTable(tmp_path, 0, 3).path.open(newline="") as file:
        assert len(list(csv.reader(file))) == 1 + 67 + 1


def test_a_damaged_score_is_scored_again(score: Score, noted: pd.Series) -> None:
    change_cell(score().folder / "scores_0000_of_0001.csv", 2, "abc")
    again = score()
    assert again.exit_code == 0, again.err
    assert "scored 1 scan " in again.out
    assert scores_in(again.folder) == noted.to_dict()


def test_scans_in_folders_with_long_names_and_other_endings(
    score: Score, archive: Path, noted: pd.Series
) -> None:
    first, second, *_ = sorted(archive.iterdir())
    deep = archive / ("1.2.840." * 14) / ("1.2.840." * 14)
    deep.mkdir(parents=True)
    first.rename(deep / "ct.nii.gz")
    second.rename(archive / "b.NII.GZ")
    done = score()
    assert done.exit_code == 0, done.err
    assert len(scores_in(done.folder)) == len(noted) - 1
    assert "1 file named like volumes, not used" in done.out


def test_no_link_in_an_output_is_written_through(score: Score, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / "out" / "top.csv").symlink_to(tmp_path / "mine.csv")
    refused = score()
    assert refused.exit_code == 2
    assert "top.csv is a link to" in refused.err
    assert (tmp_path / "mine.csv").read_text() == "mine"
