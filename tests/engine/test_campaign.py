"""A campaign through the front door: a program annotates, and the run ends as a simulation does."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import DictConfig

import alseg.export
import alseg.predict
from alseg.active.query_maps import QueryMaps
from alseg.config.settings import load_config
from alseg.data.formats.msd import read_msd
from alseg.data.splits import growing_split, split_by_fraction
from alseg.run.state import RunState
from tests.conftest import Outcome
from tests.oracles.unlabelled import move_labels_away

SCRIPT = Path(__file__).parents[2] / "scripts" / "program_annotator.py"
ANNOTATOR = runpy.run_path(str(SCRIPT))
Train = Callable[..., Outcome]
POOL = ("pool.initial=3", "pool.query_size=2", "pool.rounds=2")
PERSON = ("oracle=person", "oracle.settle_seconds=0")


def training_part(phantoms: Path) -> tuple[str, ...]:
    """The cases that the smoke experiment trains on."""
    ids = read_msd(phantoms).cases
    return split_by_fraction(ids, validation=0.16, test=0.24, seed=0).training


@pytest.fixture(scope="module")
def trained_apart(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The phantoms without the labels of their training part; and the folder of all labels."""
    folder = tmp_path_factory.mktemp("trained_apart")
    return move_labels_away(phantoms, folder, training_part(phantoms))


def visit(run_folder: Path, labels: Path, **settings: bool) -> list[str]:
    request = ANNOTATOR["newest_request"](run_folder)
    done: list[str] = ANNOTATOR["annotate"](request, labels, **settings)
    return done


def results(folder: Path) -> tuple[str, str]:
    """queries.csv, and metrics.csv but for what a clock says."""
    metrics = pd.read_csv(folder / "metrics.csv", dtype=str)
    measured = [c for c in metrics if c.endswith("_seconds") or c == "preprocessed_volumes"]
    return (folder / "queries.csv").read_text(), metrics.drop(columns=measured).to_csv()


def run_campaign(
    train: Train, labels: Path, *overrides: str, smoke: bool = True
) -> tuple[Path, list[str]]:
    """Start, and resume after each visit of the annotator; returns the run and what was said."""
    printed = []
    outcome = train(*PERSON, *overrides, smoke=smoke)
    folder = outcome.folder
    for _ in range(12):
        assert outcome.exit_code == 0, outcome.err
        printed.append(outcome.out)
        if "wait for annotation" not in outcome.out:
            return folder, printed
        assert f"Then continue with: python -m alseg.train resume={folder}" in outcome.out
        assert visit(folder, labels)
        outcome = train(resume=folder, smoke=False)
    raise AssertionError(f"the campaign does not end: {printed[-1]}")


@pytest.mark.parametrize("splits", ["fraction", "growing", "annotated"])
def test_a_campaign_ends_with_the_bits_of_the_simulation(
    train: Train, phantoms: Path, tmp_path: Path, splits: str
) -> None:
    # the other splits need no label; but an MSD data set lists one at least
    hidden = sorted(read_msd(phantoms).cases)[1:]
    if splits == "fraction":
        hidden = list(training_part(phantoms))
    data, labels = move_labels_away(phantoms, tmp_path / "campaign", hidden)
    settings = (*POOL, f"data/splits={splits}", "pool.initial=4")
    if splits == "annotated":
        settings += ("validation=cross", "validation.folds=3")
    simulated = train(*settings)
    assert simulated.exit_code == 0, simulated.err
    folder, printed = run_campaign(train, labels, *settings, f"data.task.root={data}")
    assert len(printed) > 4  # late and in parts
    assert results(folder) == results(simulated.folder)
    log = (folder / "run.log").read_text()
    for reason in (
        "but its image",
        "holds [200.0]; allowed are 0 to 2",
        "holds background only",
    ):
        assert reason in log
    history = pd.read_csv(folder / "annotations" / "history.csv")
    assert set(history["case"]) <= set(hidden)
    assert not history.duplicated(["case"]).any()
    assert (history["minutes"] == ANNOTATOR["MINUTES"]).all()
    in_rounds = history[history["request"] == "round_01"]
    assert in_rounds["proposal_dice"].between(0, 1).all()


def test_a_campaign_that_has_ended_asks_on_when_more_rounds_are_wanted(
    train: Train, trained_apart: tuple[Path, Path]
) -> None:
    data, labels = trained_apart
    simulated = train(*POOL)
    settings = (*POOL, "pool.rounds=1", f"data.task.root={data}")
    folder, _ = run_campaign(train, labels, *settings)
    assert not (folder / "requests" / "round_01").exists()
    waiting = train("pool.rounds=2", "resume_force=true", resume=folder, smoke=False)
    assert waiting.exit_code == 0, waiting.err
    assert "2 of 2 volumes wait for annotation" in waiting.out
    visit(folder, labels, with_mistakes=False)
    ended = train(resume=folder, smoke=False)
    assert ended.exit_code == 0, ended.err
    assert results(folder) == results(simulated.folder)


def test_pictures_and_proposals_are_made_before_anybody_annotates(
    train: Train, trained_apart: tuple[Path, Path]
) -> None:
    data, labels = trained_apart
    settings = (*POOL, f"data.task.root={data}", "pictures=1", "save_maps=true")
    folder = train(*PERSON, *settings).folder
    visit(folder, labels, with_mistakes=False)
    waiting = train(resume=folder, smoke=False)
    assert "2 of 2 volumes wait for annotation" in waiting.out
    request = folder / "requests" / "round_01"
    cases = list(pd.read_csv(request / "request.csv")["case"])
    drawn = folder / "rounds" / "round_01" / "pictures" / f"01_{cases[0]}.png"
    assert drawn.is_file()
    for case_id in cases:
        proposal = request / "labels" / "original" / f"{case_id}.nii.gz"
        maps = folder / "rounds" / "round_01" / "maps"
        assert proposal.read_bytes() == (maps / f"{case_id}_prediction.nii.gz").read_bytes()
        assert (request / "uncertainty" / proposal.name).is_file()
    before = drawn.stat().st_mtime_ns
    visit(folder, labels, with_mistakes=False)
    finished = train(resume=folder, smoke=False)
    assert "wait for annotation" not in finished.out
    assert drawn.stat().st_mtime_ns == before


def test_random_queries_have_proposals_too(train: Train, trained_apart: tuple[Path, Path]) -> None:
    data, labels = trained_apart
    run_campaign(train, labels, *POOL, f"data.task.root={data}", "strategy=random")


def test_a_run_that_waits_continues_by_itself_and_ends_at_ctrl_c(
    train: Train, trained_apart: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, labels = trained_apart
    settings = (*POOL, f"data.task.root={data}", "oracle.wait=true", "oracle.poll_seconds=3")
    whole, _ = run_campaign(train, labels, *POOL, f"data.task.root={data}")
    folders: list[Path] = []
    calls: Iterator[int] = iter(range(100))
    really_sleep = time.sleep

    def sleep(seconds: float) -> None:
        if seconds != 3:
            really_sleep(seconds)
            return
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        visit(folders[-1], labels)

    monkeypatch.setattr("alseg.oracles.person.time.sleep", sleep)
    folders.append(whole.with_name("waits"))
    cut = train(*PERSON, *settings, folder=folders[0])
    assert cut.exit_code == 130
    assert f"continue with: python -m alseg.train resume={cut.folder}" in cut.err
    assert " of 3 annotated" in cut.out
    resumed = train(resume=cut.folder, smoke=False)
    assert resumed.exit_code == 0, resumed.err
    assert "1 of 2 annotated" in resumed.out or "0 of 2 annotated" in resumed.out
    assert results(cut.folder) == results(whole)


def test_any_starts_a_round_with_what_has_come(
    train: Train, trained_apart: tuple[Path, Path]
) -> None:
    data, labels = trained_apart
    waiting = train(*PERSON, *POOL, f"data.task.root={data}", "oracle.accept=any")
    (request,) = waiting.folder.glob("requests/*")
    asked = list(pd.read_csv(request / "request.csv")["case"])
    final = request / "labels" / "final" / f"{asked[1]}.nii.gz"
    final.write_bytes((labels / final.name).read_bytes())
    started = train(resume=waiting.folder, smoke=False)
    assert "2 of 2 volumes wait for annotation" in started.out
    state = RunState.load(waiting.folder)
    assert state.pool.labelled == (asked[1],)
    assert {asked[0], asked[2]} <= set(state.pool.unlabelled)
    assert [row["case_id"] for row in state.queries] == [asked[1]]
    # a label that comes later than its round is not lost
    late = final.with_name(f"{asked[0]}.nii.gz")
    late.write_bytes((labels / late.name).read_bytes())
    visit(waiting.folder, labels, with_mistakes=False)
    finished = train(resume=waiting.folder, smoke=False)
    assert finished.exit_code == 0, finished.err
    assert asked[0] in RunState.load(waiting.folder).pool.labelled


def test_a_first_round_waits_for_a_case_to_validate_with(
    train: Train, phantoms: Path, tmp_path: Path
) -> None:
    hidden = sorted(read_msd(phantoms).cases)[1:]
    data, labels = move_labels_away(phantoms, tmp_path / "campaign", hidden)
    settings = (*POOL, f"data.task.root={data}", "data/splits=growing", "oracle.accept=any")
    waiting = train(*PERSON, *settings)
    (request,) = waiting.folder.glob("requests/*")
    validates = growing_split(hidden, validation_share=0.25, seed=0).validates
    asked = list(pd.read_csv(request / "request.csv")["case"])
    for case_id in sorted(asked, key=validates):  # those to train on first
        final = request / "labels" / "final" / f"{case_id}.nii.gz"
        final.write_bytes((labels / final.name).read_bytes())
        resumed = train(resume=waiting.folder, smoke=False)
        assert resumed.exit_code == 0, resumed.err
        is_ready = validates(case_id)
        assert ("none of them is one to validate with" in resumed.out) is not is_ready
        if is_ready:
            return
    raise AssertionError("no case validates")


def test_what_has_a_label_is_not_asked_for(train: Train, phantoms: Path, tmp_path: Path) -> None:
    training = training_part(phantoms)
    data, _ = move_labels_away(phantoms, tmp_path / "campaign", training[2:])
    waiting = train(*PERSON, *POOL, f"data.task.root={data}", "pool.start=labelled")
    assert waiting.exit_code == 0, waiting.err
    assert RunState.load(waiting.folder).pool.labelled == training[:2]
    assert [path.name for path in waiting.folder.glob("requests/*")] == ["round_01"]
    none = move_labels_away(phantoms, tmp_path / "bare", training)[0]
    refused = train(*PERSON, *POOL, f"data.task.root={none}", "pool.start=labelled")
    assert refused.exit_code == 2
    assert "pool.start=labelled begins with the cases that have a label" in refused.err


def test_a_kill_while_proposals_are_made_asks_for_the_same_units(
    train: Train, trained_apart: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, labels = trained_apart
    waiting = train(*PERSON, *POOL, f"data.task.root={data}")
    visit(waiting.folder, labels, with_mistakes=False)
    looked: list[int] = []
    predict_step = QueryMaps.predict_step

    def killed(self: QueryMaps, batch: dict, batch_idx: int) -> list[str]:
        looked.append(batch_idx)
        if len(looked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict_step(self, batch, batch_idx)

    monkeypatch.setattr(QueryMaps, "predict_step", killed)
    cut = train(resume=waiting.folder, smoke=False)
    assert cut.exit_code == 143
    request = waiting.folder / "requests" / "round_01"
    assert not (request / "request.json").exists()
    resumed = train(resume=waiting.folder, smoke=False)
    assert "2 of 2 volumes wait for annotation" in resumed.out
    scores = pd.read_csv(waiting.folder / "rounds" / "round_01" / "scores.csv")
    chosen = scores.sort_values("score", ascending=False)["case_id"][:2]
    assert list(pd.read_csv(request / "request.csv")["case"]) == list(chosen)
    assert len(list((request / "labels" / "original").iterdir())) == 2


def test_a_run_that_waits_is_scheduled_in_mlflow(
    train: Train, trained_apart: tuple[Path, Path], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    data, labels = trained_apart
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    settings = (*POOL, f"data.task.root={data}", f"tracking.mlflow.uri={store}")
    folder = train(*PERSON, *settings, tracking="mlflow").folder
    visit(folder, labels, with_mistakes=False)

    def status() -> list[str]:
        client = MlflowClient(store)
        (experiment,) = [e for e in client.search_experiments() if e.name == "smoke"]
        return sorted(run.info.status for run in client.search_runs([experiment.experiment_id]))

    waiting = train(resume=folder, smoke=False)
    assert "2 of 2 volumes wait for annotation" in waiting.out
    assert "is a link out of the run folder" not in waiting.out
    assert "SCHEDULED" in status()
    visit(folder, labels, with_mistakes=False)
    assert train(resume=folder, smoke=False).exit_code == 0
    assert set(status()) == {"FINISHED"}


def test_a_sweep_asks_no_person(
    train: Train, trained_apart: tuple[Path, Path], tmp_path: Path
) -> None:
    outcome = train(
        "--multirun", *PERSON, *POOL, f"data.task.root={trained_apart[0]}", "seed=1",
        f"hydra.sweep.dir='{tmp_path / 'sweep'}'",
    )  # fmt: skip
    assert outcome.exit_code == 1
    assert "oracle=person is for a single run" in outcome.out + outcome.err


def test_what_is_given_at_a_resume_stays_until_it_is_changed(
    train: Train, trained_apart: tuple[Path, Path]
) -> None:
    folder = train(*PERSON, *POOL, f"data.task.root={trained_apart[0]}").folder

    def resumed(*overrides: str) -> DictConfig:
        outcome = train(*overrides, resume=folder, smoke=False)
        assert outcome.exit_code == 0, outcome.err
        return load_config(folder)

    resumed("oracle=person", "oracle.annotator=Zoe")
    window = "data.inferer.roi_size=[16,16,16]"
    refused = train(window, resume=folder, smoke=False)
    assert "cannot continue with other settings: data.inferer.roi_size" in refused.err
    assert resumed("oracle=person", "oracle.poll_seconds=3").oracle.annotator == "Zoe"
    resumed(window, "resume_force=true")
    config = resumed("oracle=person", "oracle.accept=any")
    assert (config.oracle.annotator, config.oracle.poll_seconds) == ("Zoe", 3)
    assert config.data.inferer.roi_size == [16, 16, 16]
    assert resumed("oracle=person", "oracle.annotator=Ada").oracle.annotator == "Ada"
    assert resumed("pictures=1").oracle.annotator == "Ada"


def test_the_network_can_be_used_while_a_request_is_open(
    train: Train,
    trained_apart: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data, labels = trained_apart
    folder = train(*PERSON, *POOL, f"data.task.root={data}").folder
    visit(folder, labels, with_mistakes=False)
    waiting = train(resume=folder, smoke=False)
    assert "2 of 2 volumes wait for annotation" in waiting.out
    assert RunState.load(folder).finished_rounds == 0
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(data / "imagesTr" / "phantom_000.nii.gz", scans)
    predict = ["alseg.predict", str(folder), f"images={scans}", f"output={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", [*predict, "trainer=cpu"])
    alseg.predict.main()
    assert "segmented 1 scan with the network of round 1" in capfd.readouterr().out
    bundle = tmp_path / "bundle"
    monkeypatch.setattr(sys, "argv", ["alseg.export", str(folder), f"bundle={bundle}"])
    alseg.export.main()
    assert "trained on 3 annotated volumes" in (bundle / "docs" / "README.md").read_text()


def test_real_volumes_end_with_the_bits_of_the_simulation(
    train: Train, hippocampus: Path, tmp_path: Path
) -> None:
    everything = read_msd(hippocampus).cases
    ids = sorted(everything)[:40]
    whole, _ = move_labels_away(hippocampus, tmp_path / "whole", (), only=ids)
    training = split_by_fraction(ids, validation=0.1, test=0.2, seed=0).training
    data, labels = move_labels_away(hippocampus, tmp_path / "campaign", training, only=ids)
    settings = (
        "data=msd_hippocampus", "model=unet_tiny", "uncertainty=mc_dropout_2", "steps_per_round=4",
        "val_interval=4", "pool.initial=5", "pool.query_size=4", "pool.rounds=3",
        "data.num_workers=0", "pictures=0", f"output_dir={tmp_path / 'out'}",
    )  # fmt: skip
    simulated = train(*settings, f"data.root={whole}", smoke=False)
    assert simulated.exit_code == 0, simulated.err
    folder, printed = run_campaign(train, labels, *settings, f"data.root={data}", smoke=False)
    assert len(printed) > 6
    assert results(folder) == results(simulated.folder)
    history = pd.read_csv(folder / "annotations" / "history.csv")
    assert len(history) == 13
    assert np.isfinite(history["proposal_dice"]).sum() == 8


def test_the_program_is_told_of_a_run_without_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["program_annotator", str(tmp_path), "--labels", "x"])
    with pytest.raises(SystemExit, match="no request in"):
        ANNOTATOR["main"]()
