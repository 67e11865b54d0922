"""validation=cross through the front door: folds over the annotated cases."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from alseg.comparison.runs import check_same_data, read_run
from alseg.data.folds import CrossValidation
from alseg.run.folder import STOPPING_FILE
from alseg.run.state import RunState
from alseg.system.files import read_tensors
from alseg.training.module import SegmentationModule
from tests.conftest import Outcome
from tests.smoke_runs import run_smoke

CROSS = (
    "validation=cross",
    "validation.folds=3",
    "data/splits=annotated",
    "pool.initial=4",
    "steps_per_round=2",
    "data.num_workers=0",
)
BESIDE_A_TEST_PART = ("data/splits=fraction", "data.validation_share=0")


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A hash of the network that validated a case last, by case."""
    found: dict[str, str] = {}
    step = SegmentationModule.validation_step

    def recorded(self: SegmentationModule, batch: dict, batch_idx: int) -> None:
        weights = hashlib.sha256()
        for tensor in self.network.state_dict().values():
            weights.update(tensor.numpy().tobytes())
        found[batch["case_id"][0]] = weights.hexdigest()
        step(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, "validation_step", recorded)
    return found


def cases_of(folder: Path, number: int = 1) -> pd.DataFrame:
    return pd.read_csv(folder / "rounds" / f"round_{number:02d}" / "cases.csv")


@pytest.mark.parametrize("strategy", ["variance", "core_set", "full"])
def test_each_annotated_case_is_judged_by_a_network_that_was_trained_on_the_other_folds(
    strategy: str, shared: Path, tmp_path: Path, drawn: list[Counter[str]]
) -> None:
    state = run_smoke(tmp_path, shared, f"strategy={strategy}", *CROSS)
    queries = pd.DataFrame(state["queries"])
    for row in state["history"]:
        annotated = queries.loc[queries["round"] < row["round"], "case_id"].tolist()
        trained = [set(cases) for cases in drawn[:4]]
        del drawn[:4]
        folds = CrossValidation(3).parts(annotated)
        assert trained == [set(annotated), *(set(fold.training) for fold in folds)]
        cases = cases_of(tmp_path, row["round"])
        assert sorted(cases["case_id"]) == sorted(annotated)
        for number, fold in enumerate(folds, start=1):
            assert set(cases.loc[cases["fold"] == number, "case_id"]) == set(fold.validation)
        classes = cases[["dice_liver", "dice_tumour"]].mean()
        assert row["val_dice"] == pytest.approx(classes.mean())
        assert row["val_dice_liver"] == pytest.approx(classes["dice_liver"])
        assert row["folds"] == 3
    assert drawn == []


def test_a_label_changes_nothing_in_the_network_that_judges_its_case(
    phantoms: Path, tmp_path: Path, judges: dict[str, str]
) -> None:
    def run(name: str) -> tuple[dict[str, str], pd.DataFrame]:
        judges.clear()
        settings = (f"data.task.root={tmp_path / 'data'}", f"output_dir={tmp_path / name}")
        run_smoke(tmp_path / name, tmp_path, *CROSS, *settings, "pool.rounds=1")
        return dict(judges), cases_of(tmp_path / name).set_index("case_id")

    def change_label(case_id: str) -> None:
        path = tmp_path / "data" / "labelsTr" / f"{case_id}.nii.gz"
        label = nibabel.load(path)
        moved = np.roll(np.asarray(label.dataobj), 9, axis=0)
        nibabel.save(nibabel.Nifti1Image(moved, label.affine, label.header), path)

    shutil.copytree(phantoms, tmp_path / "data")
    before, cases = run("before")
    everything = {path.name.split(".")[0] for path in (tmp_path / "data/labelsTr").iterdir()}
    change_label(min(everything - set(cases.index)))  # nobody has annotated it
    hidden, same_cases = run("hidden")
    assert hidden == before
    pd.testing.assert_frame_equal(same_cases, cases)

    sizes = cases["fold"].value_counts()
    fold = sizes.idxmax()  # with more than the one case
    changed = cases.index[cases["fold"] == fold][0]
    change_label(changed)
    after, other_cases = run("after")
    mates = cases.index[(cases["fold"] == fold) & (cases.index != changed)]
    assert len(mates)
    assert all((after[i] == before[i]) == (cases.loc[i, "fold"] == fold) for i in cases.index)
    pd.testing.assert_frame_equal(other_cases.loc[mates], cases.loc[mates])
    assert not other_cases.loc[[changed]].equals(cases.loc[[changed]])


def test_the_network_that_is_kept_has_its_last_weights_and_those_of_folds_are_gone(
    shared: Path, tmp_path: Path
) -> None:
    run_smoke(tmp_path, shared, *CROSS)
    for folder in (tmp_path / "rounds").iterdir():
        best, last = (read_tensors(folder / f"{name}.ckpt") for name in ("best", "last"))
        assert best["global_step"] == last["global_step"] == 2
        assert all((best["state_dict"][k] == v).all() for k, v in last["state_dict"].items())
        assert {path.name for path in folder.glob("*.ckpt*")} == {"best.ckpt", "last.ckpt"}


def test_a_run_that_is_killed_in_a_fold_repeats_none_and_ends_with_the_same_bits(
    train: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(*CROSS)
    assert whole.exit_code == 0, whole.err
    assert "round 2/2 · fold 3 of 3" in whole.out
    n_steps, step = [0], SegmentationModule.training_step

    def counted(self: SegmentationModule, *args):
        n_steps[0] += 1
        if n_steps[0] in (5, 10):  # in the second fold of the first round, at the end of the last
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(SegmentationModule, "training_step", counted)
    cut = train(*CROSS, "checkpoint_every_n_steps=null")
    again = train(resume=cut.folder, smoke=False)
    assert (cut.exit_code, again.exit_code) == (143, 143)
    finished = train(resume=cut.folder, smoke=False)
    assert finished.exit_code == 0, finished.err
    assert n_steps[0] == 2 * 4 * 2  # rounds, trainings, steps
    before, after = RunState.load(whole.folder), RunState.load(cut.folder)
    assert (after.history, after.queries) == (before.history, before.queries)
    for number in (1, 2):
        pd.testing.assert_frame_equal(
            cases_of(cut.folder, number), cases_of(whole.folder, number), check_exact=True
        )


def test_there_are_as_many_folds_as_cases_where_those_are_fewer(
    train: Callable[..., Outcome],
) -> None:
    run = train(*CROSS, "pool.initial=2", "validation.folds=5")
    assert run.exit_code == 0, run.err
    assert [row["folds"] for row in RunState.load(run.folder).history] == [2, 4]
    assert "of all annotated cases, each judged by a network" in run.out
    advice = (run.folder / STOPPING_FILE).read_text()
    assert "with 4 labelled volumes the cross-validated Dice is" in advice
    assert "(of 4 cases, too few for an interval)" in advice
    assert "tends to be too low for the round's own network" in advice


def test_beside_a_test_part_both_are_measured_and_runs_with_other_folds_are_compared(
    shared: Path, tmp_path: Path
) -> None:
    settings = (*CROSS, *BESIDE_A_TEST_PART, "pool.rounds=1")
    folders = [tmp_path / str(seed) for seed in (1, 2)]
    for seed, folder in enumerate(folders, start=1):
        state = run_smoke(folder, shared, *settings, "strategy=random", f"seed={seed}")
        (row,) = state["history"]
        cases = cases_of(folder)
        parts = cases.groupby("part")["fold"].count()  # of cases with a fold
        assert parts.to_dict() == {"test": 0, "val": 4}
        liver = cases[cases["part"] == "test"]["dice_liver"].mean()
        assert row["test_dice_liver"] == pytest.approx(liver)
    annotated = [RunState.load(folder).pool.labelled for folder in folders]
    assert set(annotated[0]) != set(annotated[1])
    check_same_data([read_run(folder) for folder in folders])


@pytest.mark.parametrize(
    "settings",
    [
        ("uncertainty=ensemble", "uncertainty.n_members=2"),
        ("uncertainty=svgd", "uncertainty.n_particles=2"),
        ("strategy=entropy", "pool.repeat_uncertain=true", "pool.query_size=4"),
        ("pool.start=diverse", "val_interval_unit=epochs", "val_interval=1"),
    ],
    ids=lambda settings: settings[0],
)
def test_other_ways_to_start_and_to_train_run(
    settings: tuple[str, ...], shared: Path, tmp_path: Path
) -> None:
    state = run_smoke(tmp_path, shared, *CROSS, *settings)
    assert [row["folds"] for row in state["history"]] == [3, 3]
    for row in state["history"]:
        cases = cases_of(tmp_path, row["round"])
        assert len(cases) == cases["case_id"].nunique() == row["labelled"]
