"""A finished run that is resumed with more rounds, from the command line, on tiny phantoms.

Its last round has made no query. It makes it first, so that the run ends as one that had the
larger number of rounds from the beginning.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from alseg.comparison.runs import gather_runs
from alseg.config.composition import composed
from alseg.core.errors import ConfigError
from alseg.engine.runs import train
from alseg.run.state import RunState
from alseg.system.files import read_json, read_tensors
from alseg.training.module import SegmentationModule
from tests.conftest import Outcome, are_equal
from tests.run_folders import settle
from tests.smoke_runs import resume_smoke, run_smoke
from tests.tracking.builders import history, stored_runs

QUICK = ("steps_per_round=1", "val_interval=1", "uncertainty.n_passes=2", "pool.query_size=1")
PATCHES = ("pool.unit=patch", "pool.patch_voxels=[12,12,8]", "pool.initial=4")
SLICES = ("pool.unit=slice", "pool.initial=4")
RUNS = {
    "random volumes": ("strategy=random",),
    "volumes": ("strategy=badge", "round_start=continue"),
    "random patches": ("strategy=random", *PATCHES),
    "patches": ("strategy=power_bald", *PATCHES, "cost=voxels"),
    "random slices": ("strategy=foreground_aware_random", *SLICES),
    "slices": ("strategy=kmeans_bald", *SLICES),
    "a few candidates": ("strategy=entropy", "pool.candidates=2"),
    "repeats": ("strategy=entropy", "pool.repeat_uncertain=true", "pool.query_size=4"),
    "networks": ("strategy=entropy", "round_start=continue_last", "evaluation.networks=2"),
    "two stages": ("strategy=random", "semi_supervised=pseudo_label", "steps_per_round=2"),
}


def results(folder: Path) -> dict[str, Any]:
    """All that a run leaves, except seconds and where it took place."""
    state = json.loads((folder / "state.json").read_text())
    for name in ("sha256", "timings"):
        del state[name]
    metrics = pd.read_csv(folder / "metrics.csv")
    metrics = metrics.drop(columns=[n for n in metrics if "seconds" in n or "preprocessed" in n])
    tables = [folder / "queries.csv", *sorted(folder.glob("rounds/*/[cfs]*.csv"))]
    tracked = read_json(folder / "tracking.json")["rounds"]
    return {
        "state": state,
        "metrics": metrics.to_csv(),
        "tables": {path.relative_to(folder): path.read_text() for path in tables},
        "files": sorted(p.relative_to(folder) for p in folder.glob("rounds/*/*")),
        "tracked": {number: (a["status"], a["labelled"]) for number, a in tracked.items()},
    }


def files_of(folder: Path) -> list[str]:
    """What a resumption would change first."""
    return [(folder / name).read_text() for name in ("state.json", "config.yaml", "start.json")]


def weights(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): read_tensors(path)["state_dict"]
        for path in sorted(folder.glob("rounds/*/*.ckpt"))
    }


def check_same(folder: Path, whole: Path) -> None:
    assert results(folder) == results(whole)
    ours, theirs = weights(folder), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(are_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", RUNS)
def test_more_rounds_end_as_if_they_had_been_wanted_from_the_beginning(
    name: str, shared: Path, tmp_path: Path
) -> None:
    settings = (*QUICK, *RUNS[name])
    run_smoke(tmp_path / "whole", shared, *settings, "pool.rounds=3")
    finished = run_smoke(tmp_path / "run", shared, *settings, "pool.rounds=2")
    resume_smoke(tmp_path / "run", "pool.rounds=3")
    check_same(tmp_path / "run", tmp_path / "whole")
    assert (
        json.loads((tmp_path / "run/state.json").read_text())["history"][:2]
        == (finished["history"])
    )


@pytest.mark.parametrize(
    "settings",
    [
        ("strategy=bald", "uncertainty=ensemble", "uncertainty.n_members=2"),
        (
            "strategy=bald",
            "uncertainty=ensemble",
            "uncertainty.n_members=3",
            "evaluation.networks=2",
            "round_start=continue",
        ),
        ("strategy=entropy", "data/splits=annotated", "validation=cross"),
    ],
)
def test_the_last_round_trains_the_networks_that_only_a_query_needs(
    settings: tuple[str, ...], shared: Path, tmp_path: Path
) -> None:
    settings = ("steps_per_round=1", "val_interval=1", "pool.query_size=1", *settings)
    run_smoke(tmp_path / "whole", shared, *settings, "pool.initial=4", "pool.rounds=2")
    run_smoke(tmp_path / "run", shared, *settings, "pool.initial=4", "pool.rounds=1")
    resume_smoke(tmp_path / "run", "pool.rounds=2")
    check_same(tmp_path / "run", tmp_path / "whole")


def test_what_was_preprocessed_for_the_last_round_counts_for_it(
    shared: Path, tmp_path: Path
) -> None:
    def with_a_cache(name: str) -> str:
        return f"cache_dir={tmp_path / name}"

    settings = (*QUICK, "strategy=entropy", "pool.candidates=2")
    run_smoke(tmp_path / "whole", shared, *settings, "pool.rounds=3", with_a_cache("a"))
    run_smoke(tmp_path / "run", shared, *settings, "pool.rounds=2", with_a_cache("b"))
    resume_smoke(tmp_path / "run", "pool.rounds=3")
    counts = [
        pd.read_csv(tmp_path / name / "metrics.csv")["preprocessed_volumes"].tolist()
        for name in ("run", "whole")
    ]
    assert counts[0] == counts[1]
    assert counts[1][1] > 0


def test_a_larger_budget_lets_a_run_go_on(shared: Path, tmp_path: Path) -> None:
    settings = (*QUICK, "strategy=random", *PATCHES, "cost=voxels", "pool.rounds=3")
    run_smoke(tmp_path / "whole", shared, *settings, "pool.budget=7000")
    cut = run_smoke(tmp_path / "run", shared, *settings, "pool.budget=5000")  # 4 of 1152 voxels
    assert [row["labelled"] for row in cut["history"]] == [4, 5]
    (run,) = gather_runs([tmp_path / "run"]).runs
    assert run.complete
    resume_smoke(tmp_path / "run", "pool.budget=7000")
    check_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        ((), "all 7 volumes were labelled in round 2 of 4"),
        (
            ("pool.unit=patch", "pool.patch_voxels=99"),
            "no volume had room for another region that can be annotated after round 2 of 4",
        ),
    ],
)
def test_a_run_with_nothing_left_to_ask_for_stays_as_it_is(
    unit: tuple[str, ...],
    reason: str,
    shared: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = ("strategy=random", *QUICK, *unit, "pool.initial=3", "pool.query_size=4")
    before = run_smoke(tmp_path, shared, *settings, "pool.rounds=2")
    caplog.set_level(logging.INFO)
    after = resume_smoke(tmp_path, "pool.rounds=4")
    assert f"the pool has run dry: {reason}" in caplog.messages
    assert "the run had finished its 2 rounds before" in caplog.messages
    assert {**after, "config_hash": "", "sha256": ""} == {
        **before, "config_hash": "", "sha256": ""
    }  # fmt: skip


def test_a_run_that_goes_on_may_be_interrupted(
    train: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*QUICK, "strategy=entropy", *PATCHES)
    whole = train(*settings, "pool.rounds=3")
    run = train(*settings, "pool.rounds=2")
    for place in ("alseg.engine.runs.prepare", "alseg.oracles.simulated.SimulatedOracle.annotate"):
        with monkeypatch.context() as patch:

            def interrupted(*args: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(place, interrupted)
            more = ("pool.rounds=3", "resume_force=true") if "runs" in place else ()
            cut = train(*more, resume=run.folder, smoke=False)
        assert cut.exit_code == 130, cut.err
    ended = train(resume=run.folder, smoke=False)
    assert ended.exit_code == 0, ended.err
    check_same(run.folder, whole.folder)


def test_a_last_round_whose_network_is_gone_is_trained_again(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = (*QUICK, "strategy=entropy")
    run_smoke(tmp_path / "whole", shared, *settings, "pool.rounds=3")
    run_smoke(tmp_path / "run", shared, *settings, "pool.rounds=2")
    (tmp_path / "run/rounds/round_02/best.ckpt").unlink()
    resume_smoke(tmp_path / "run", "pool.rounds=3")
    assert f"the round starts again: {tmp_path / 'run/rounds/round_02'}" in caplog.messages
    assert "rounds/round_02/best.ckpt, which training has left: it has been removed" in caplog.text
    check_same(tmp_path / "run", tmp_path / "whole")


def test_finished_rounds_stay_as_they_are_whatever_else_is_changed(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_smoke(tmp_path, shared, *QUICK, "strategy=random", "pool.rounds=2")
    steps = [0]
    training_step = SegmentationModule.training_step

    def counted(self: SegmentationModule, *args: Any) -> Any:
        steps[0] += 1
        return training_step(self, *args)

    monkeypatch.setattr(SegmentationModule, "training_step", counted)
    changed = ("pool.rounds=3", "steps_per_round=2", "strategy=entropy", "pool.query_size=3")
    after = resume_smoke(tmp_path, *changed)
    assert after["history"][:2] == before["history"]
    assert [row["labelled"] for row in after["history"]] == [2, 3, 6]
    assert steps == [2]  # only the third round's
    assert pd.read_csv(tmp_path / "rounds/round_02/scores.csv")["score"].notna().all()


@pytest.mark.parametrize(
    ("settings", "changed", "message"),
    [
        (
            ("strategy=random",),
            ("pool.rounds=2", "model=unet_small"),
            "round 1 has yet to make its query, .* which is another one than model=",
        ),
        (
            ("strategy=full", "round_start=continue"),
            ("pool.rounds=2",),
            "has trained its only round for the steps of 1 rounds, .* with pool.rounds=2",
        ),
        (
            ("strategy=random", *PATCHES),
            ("pool.rounds=2", "pool.unit=slice", "pool.patch_voxels=null"),
            "pool.unit: patch -> slice: what is annotated has been counted in patches",
        ),
        (
            ("strategy=random",),
            ("pool.rounds=2", "evaluation.networks=2"),
            "evaluation.networks: 1 -> 2: the Dice of 1 round that the run has finished would not",
        ),
    ],
)
def test_what_would_not_go_on_as_the_same_run_is_refused(
    settings: tuple[str, ...],
    changed: tuple[str, ...],
    message: str,
    shared: Path,
    tmp_path: Path,
) -> None:
    run_smoke(tmp_path, shared, *QUICK, *settings, "pool.rounds=1")
    kept = files_of(tmp_path)
    with pytest.raises(ConfigError, match=message):
        resume_smoke(tmp_path, *changed)
    assert files_of(tmp_path) == kept
    resume_smoke(tmp_path)  # as it was


def test_a_network_that_has_no_past_does_not_continue(shared: Path, tmp_path: Path) -> None:
    ensemble = ("strategy=bald", "uncertainty=ensemble", "round_start=continue")
    run_smoke(tmp_path, shared, *QUICK[:2], *ensemble, "uncertainty.n_members=2", "pool.rounds=2")
    kept = files_of(tmp_path)
    message = r"best_member_3\.ckpt, from which network 3 of round 2 is to continue"
    with pytest.raises(ConfigError, match=message):
        resume_smoke(tmp_path, ensemble[1], "pool.rounds=3", "uncertainty.n_members=3")
    assert files_of(tmp_path) == kept
    state = resume_smoke(tmp_path, "pool.rounds=3")  # with the number that it had
    assert len(state["history"]) == 3


def test_a_run_that_knows_no_number_of_networks_goes_on_with_one(
    shared: Path, tmp_path: Path
) -> None:
    run_smoke(tmp_path, shared, *QUICK, "strategy=random", "pool.rounds=1")
    config = OmegaConf.load(tmp_path / "config.yaml")
    del config.evaluation["networks"]  # as an earlier version has left it
    OmegaConf.save(config, tmp_path / "config.yaml")
    settle(tmp_path)
    overrides = ["resume=" + str(tmp_path), "trainer=cpu"]
    train(composed(overrides), tmp_path, overrides)
    assert "networks: 1" in (tmp_path / "config.yaml").read_text()


def test_a_schedule_over_the_rounds_is_spoken_of_where_it_has_begun(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = (*QUICK, "strategy=clasp_pe")
    run_smoke(tmp_path / "whole", shared, *settings, "pool.rounds=3")
    run_smoke(tmp_path / "run", shared, *settings, "pool.rounds=2")
    resume_smoke(tmp_path / "run", "pool.rounds=3")  # of the first query a schedule knows no more
    check_same(tmp_path / "run", tmp_path / "whole")
    assert "follows a schedule" not in caplog.text
    resume_smoke(tmp_path / "run", "pool.rounds=4")
    assert (
        "strategy clasp_pe follows a schedule over pool.rounds: the queries up to round 2 were "
        "made as in a run of 3 rounds" in caplog.text
    )


def test_tracking_stores_get_no_round_twice(train: Callable[..., Outcome], tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    settings = (*QUICK, "strategy=random", f"tracking.mlflow.uri={store}")
    run = train(*settings, "pool.rounds=1", tracking="mlflow")
    more = ("pool.rounds=2", "resume_force=true")
    assert train(*more, resume=run.folder, smoke=False).exit_code == 0
    parent, nested = stored_runs(store, "smoke")
    assert {r.info.status for r in (parent, *nested.values())} == {"FINISHED"}
    assert sorted(nested) == ["1", "2"]
    state = RunState.load(run.folder)
    expected = [(row["labelled"], row["test_dice"]) for row in state.history]
    assert history(store, parent, "dice/test") == expected
    assert [labelled for labelled, _ in expected] == [2, 3]
