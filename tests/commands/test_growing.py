"""data/splits=growing through the front door: no fixed parts, no test part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from alseg.active import round_loop
from alseg.active.experiment import Experiment
from alseg.core.errors import ConfigError
from alseg.data.splits import growing_split
from alseg.run.folder import STOPPING_FILE
from alseg.run.state import RunState
from alseg.system.files import read_tensors
from tests.conftest import Outcome, write_msd
from tests.smoke_runs import run_smoke
from tests.tracking.builders import history, stored_runs

GROWING = (
    "data/splits=growing",
    "pool.initial=4",
    "steps_per_round=2",
    "data.num_workers=0",
)
# they compare candidates with trained ones by features or images, read labels, take all
STRATEGIES = ("core_set", "typiclust", "density_weighted_entropy", "oracle_dice", "full")


def parts_of(cases: list[str]) -> tuple[set[str], set[str]]:
    phantoms = [f"phantom_{number:03d}" for number in range(12)]
    parts = growing_split(phantoms, validation_share=0.25, seed=0).parts(cases)
    return set(parts.training), set(parts.validation)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_round_trains_on_one_part_of_what_is_annotated_and_validates_on_the_other(
    strategy: str, shared: Path, tmp_path: Path, drawn: list[Counter[str]]
) -> None:
    state = run_smoke(tmp_path, shared, f"strategy={strategy}", *GROWING)
    queries = pd.DataFrame(state["queries"])
    for row in state["history"]:
        number = row["round"]
        annotated = queries.loc[queries["round"] < number, "case_id"].tolist()
        training, validation = parts_of(annotated)
        assert training
        assert validation
        assert drawn[number - 1].keys() == training
        assert row["labelled"] == row["cost"] == len(annotated)
        folder = tmp_path / "rounds" / f"round_{number:02d}"
        evaluated = pd.read_csv(folder / "cases.csv")
        assert set(evaluated["case_id"]) == validation
        assert set(evaluated["part"]) == {"val"}
        assert not (folder / "calibration.csv").exists()
    assert sorted([*state["pool"]["labelled"], *state["pool"]["unlabelled"]]) == sorted(
        f"phantom_{number:03d}" for number in range(12)
    )
    assert not [column for column in pd.read_csv(tmp_path / "metrics.csv") if "test" in column]


def test_resuming_ends_as_the_uninterrupted_run_and_records_each_round_once(
    train: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*GROWING, "pool.rounds=3", "pool.query_size=2")
    whole = train(*settings)
    assert whole.exit_code == 0, whole.err
    assert "there is no test part" in whole.out
    run_round = round_loop.run_round

    def stop_before_round_3(experiment: Experiment, state: RunState) -> RunState:
        if state.finished_rounds == 2:
            raise KeyboardInterrupt
        return run_round(experiment, state)

    monkeypatch.setattr(round_loop, "run_round", stop_before_round_3)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    cut = train(*settings, f"tracking.mlflow.uri={store}", tracking="mlflow")
    assert cut.exit_code == 130
    monkeypatch.setattr(round_loop, "run_round", run_round)
    resumed = train(resume=cut.folder, smoke=False)
    assert resumed.exit_code == 0, resumed.err
    before, after = RunState.load(whole.folder), RunState.load(cut.folder)
    assert after.history == before.history
    assert after.queries == before.queries
    assert after.pool == before.pool
    parent, _ = stored_runs(store, "smoke")
    assert [step for step, _ in history(store, parent, "dice/val")] == [4, 6, 8]
    assert "dice/test" not in parent.data.metrics
    files = MlflowClient(store).list_artifacts(parent.info.run_id)
    assert STOPPING_FILE in [file.path for file in files]


def test_what_validates_is_no_reference_of_a_query(shared: Path, tmp_path: Path) -> None:
    state = run_smoke(tmp_path, shared, "strategy=core_set", *GROWING)
    features = pd.read_csv(tmp_path / "rounds" / "round_01" / "features.csv")
    training, _ = parts_of([row["case_id"] for row in state["queries"] if row["round"] == 0])
    candidates = {*state["pool"]["unlabelled"]} | {
        row["case_id"] for row in state["queries"] if row["round"] == 1
    }
    assert set(features["case_id"]) == candidates | training


@pytest.mark.parametrize(
    "settings",
    [
        ("semi_supervised=pseudo_label", "semi_supervised.step_share=0.5"),
        ("pool.start=proxy", "proxy.steps=2"),
        ("pool.start=diverse",),
        ("pool.start=typical",),
        ("strategy=entropy", "pool.repeat_uncertain=true", "pool.query_size=4"),
        ("round_start=continue", "val_interval_unit=epochs", "val_interval=1"),
    ],
    ids=lambda settings: settings[0],
)
def test_other_ways_to_start_and_to_train_run(
    settings: tuple[str, ...], shared: Path, tmp_path: Path
) -> None:
    state = run_smoke(tmp_path, shared, *GROWING, *settings)
    assert state["finished_rounds"] == 2
    repeated = set(state["pool"]["repeated"])
    assert repeated <= parts_of(state["pool"]["labelled"])[0]  # again is no use for validation


def test_an_initial_pool_has_both_parts_whatever_the_seed(shared: Path, tmp_path: Path) -> None:
    for seed in range(4):
        settings = (*GROWING, "pool.initial=2", "pool.rounds=1", f"seed={seed}")
        state = run_smoke(tmp_path / str(seed), shared, *settings)
        training, validation = parts_of(state["pool"]["labelled"])
        assert (len(training), len(validation)) == (1, 1)
    with pytest.raises(ConfigError, match=r"pool\.initial is 1; this split takes at least 2"):
        run_smoke(tmp_path / "one", shared, *GROWING, "pool.initial=1")


def test_a_validation_part_without_foreground_keeps_the_last_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"case_{number:02d}" for number in range(8)]
    parts = growing_split(names, validation_share=0.25, seed=0).parts(names)
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(16, 16, 16)).astype(np.float32) for _ in names]
    labels = [np.zeros((16, 16, 16), np.uint8) for _ in names]
    for name, label in zip(names, labels, strict=True):
        if name in parts.training:
            label[4:9, 4:9, 4:9] = 1
    root = write_msd(tmp_path / "data", images, labels, classes=("background", "liver", "tumour"))
    settings = (f"data.task.root={root}", *GROWING, "val_interval=1")
    state = run_smoke(tmp_path / "run", tmp_path / "shared", *settings)
    assert "no label of the" in caplog.text
    assert [np.isnan(row["val_dice"]) for row in state["history"]] == [True, True]
    for number in (1, 2):
        folder = tmp_path / "run" / "rounds" / f"round_{number:02d}"
        best, last = (read_tensors(folder / f"{name}.ckpt") for name in ("best", "last"))
        assert best["global_step"] == last["global_step"] == 2
