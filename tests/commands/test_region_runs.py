"""Runs that ask for regions, from the command line: two rounds on tiny phantoms."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from alseg.active import figures
from alseg.core.errors import ConfigError
from alseg.core.units import Answer, Query, overlap, region_from_text
from alseg.oracles.simulated import SimulatedOracle
from alseg.run.state import RunState
from alseg.training.scoring_module import ScoringModule
from tests.conftest import Outcome, write_msd
from tests.smoke_runs import run_smoke

PATCHES = ("pool.unit=patch", "pool.patch_voxels=[12,12,8]", "pool.initial=4", "pool.query_size=3")
SLICES = ("pool.unit=slice", "pool.initial=4", "pool.query_size=3")
ON_REGIONS = {
    "random": ("strategy=random",),
    "foreground_aware_random_66": ("strategy=foreground_aware_random",),
    "foreground_aware_random_33": (
        "strategy=foreground_aware_random",
        "strategy.selector.fraction=0.33",
    ),
    "predictive_entropy": ("strategy=entropy",),
    "expected_entropy": ("strategy=expected_entropy",),
    "bald": ("strategy=bald",),
    "power_bald": ("strategy=power_bald",),
    "softrank_bald": ("strategy=softrank_bald",),
    "power_pe": ("strategy=power_entropy",),
    "clasp_pe": ("strategy=clasp_pe",),
    "kmeans_bald": ("strategy=kmeans_bald",),
    "core_set": ("strategy=core_set",),
    "typiclust": ("strategy=typiclust",),
    "stochastic_batch": ("strategy=stochastic_batch_entropy",),
    "sum": ("strategy=entropy", "strategy/aggregation=sum"),
}


def queries(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "queries.csv", keep_default_na=False)


@pytest.mark.parametrize("name", ON_REGIONS)
def test_each_method_asks_for_regions(name: str, shared: Path, tmp_path: Path) -> None:
    state = run_smoke(tmp_path, shared, *PATCHES, *ON_REGIONS[name])
    assert state["finished_rounds"] == 2
    rows = queries(tmp_path)
    assert rows["round"].tolist() == [0] * 4 + [1] * 3
    assert (rows["voxels"] == 12 * 12 * 8).all()
    for _, of_case in rows.groupby("case_id"):
        regions = [region_from_text(where) for where in of_case["region"]]
        assert not any(overlap(a, b) for i, a in enumerate(regions) for b in regions[:i])
    units = [(u["case_id"], u["region"]) for u in state["pool"]["regions"]]
    assert len(units) == 7
    assert {case_id for case_id, _ in units} == set(state["pool"]["labelled"])
    history = pd.read_csv(tmp_path / "metrics.csv")
    assert history["labelled"].tolist() == [4, 7]
    # the share of a volume that was annotated: the phantoms have about 32^3 voxels
    assert rows["cost"].to_numpy() == pytest.approx(1152 / 32**3, rel=0.3)
    assert history["cost"].tolist() == pytest.approx([rows["cost"][:4].sum(), rows["cost"].sum()])


def test_slices_are_one_voxel_thick(shared: Path, tmp_path: Path) -> None:
    run_smoke(tmp_path, shared, *SLICES, "strategy=entropy", "cost=slices")
    rows = queries(tmp_path)
    sizes = {
        tuple(stop - start for start, stop in region_from_text(where)) for where in rows["region"]
    }
    for size in sizes:  # across the largest spacing, whatever axis of the file that is
        assert sorted(size)[0] == 1
        assert sorted(size)[1] > 10
    assert (rows["cost"] == (rows["foreground_voxels"] > 0)).all()
    assert pd.read_csv(tmp_path / "metrics.csv")["cost"].iloc[-1] == rows["cost"].sum()


def test_the_initial_regions_are_the_same_for_all_strategies(shared: Path, tmp_path: Path) -> None:
    firsts = []
    for name in ("random", "entropy", "foreground_aware_random"):
        run_smoke(tmp_path / name, shared, *PATCHES, f"strategy={name}", "pool.rounds=1")
        firsts.append(queries(tmp_path / name)[["case_id", "region"]].to_numpy().tolist())
    assert firsts[0] == firsts[1] == firsts[2]


def test_foreground_aware_regions_are_centred_on_foreground(shared: Path, tmp_path: Path) -> None:
    run_smoke(
        tmp_path, shared, *PATCHES, "strategy=foreground_aware_random",
        "strategy.selector.fraction=1.0", "pool.query_size=6",
    )  # fmt: skip
    asked = queries(tmp_path)
    assert (asked.loc[asked["round"] == 1, "foreground_voxels"] > 0).all()


def test_no_case_gets_more_regions_than_allowed(shared: Path, tmp_path: Path) -> None:
    state = run_smoke(tmp_path, shared, *PATCHES, "strategy=entropy", "pool.max_regions_per_case=1")
    cases = [unit["case_id"] for unit in state["pool"]["regions"]]
    assert len(set(cases)) == len(cases) == 7


def test_a_pool_without_room_has_run_dry(train: Callable[..., Outcome]) -> None:
    run = train(
        "pool.unit=patch", "pool.patch_voxels=99", "pool.initial=3", "pool.query_size=9",
        "pool.rounds=4", "strategy=entropy",
    )  # fmt: skip
    assert run.exit_code == 0, run.err
    state = RunState.load(run.folder)
    assert [row["labelled"] for row in state.history] == [3, 7]  # each volume is one region
    assert "4 regions are left to choose from" in run.out
    assert "another region that can be annotated after round 2 of 4" in run.out


@pytest.mark.parametrize("unit", [PATCHES, SLICES])
@pytest.mark.parametrize("strategy", ["kmeans_bald", "foreground_aware_random"])
def test_an_interrupted_run_ends_as_if_left_alone(
    unit: tuple[str, ...],
    strategy: str,
    train: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = (*unit, f"strategy={strategy}", "steps_per_round=2")
    left_alone = train(*settings)
    assert left_alone.exit_code == 0, left_alone.err
    n_calls = [0]
    original = ScoringModule.predict_step

    def cut_at_the_third(self: ScoringModule, *args: Any) -> Any:
        n_calls[0] += 1
        if n_calls[0] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args)

    annotate, queries_cut = SimulatedOracle.annotate, list[Query]()

    def cut_once(self: SimulatedOracle, query: Query) -> Answer:
        if len(query) == 3 and not queries_cut:  # of the first round, chosen and saved
            queries_cut.append(query)
            os.kill(os.getpid(), signal.SIGTERM)
        return annotate(self, query)

    monkeypatch.setattr(ScoringModule, "predict_step", cut_at_the_third)
    monkeypatch.setattr(SimulatedOracle, "annotate", cut_once)
    run = train(*settings)
    folder, n_cut = run.folder, 0
    while run.exit_code:
        assert run.exit_code in (130, 143), run.err
        n_cut += 1
        run = train(resume=folder, smoke=False)
    assert n_cut == (2 if strategy == "kmeans_bald" else 1)
    for name in ("queries.csv", "rounds/round_01/scores.csv", "rounds/round_01/features.csv"):
        if (left_alone.folder / name).exists():
            assert (folder / name).read_text() == (left_alone.folder / name).read_text()
    states = [RunState.load(each) for each in (folder, left_alone.folder)]
    assert states[0].pool == states[1].pool
    assert states[0].history == states[1].history


def test_the_foreground_of_a_round_is_what_it_trained_with(shared: Path, tmp_path: Path) -> None:
    """Not what its query opens in cases of which a part was labelled before."""
    settings = ("strategy=random", *PATCHES, "pool.initial=7")
    run_smoke(tmp_path / "one", shared, *settings, "pool.rounds=1")
    run_smoke(tmp_path / "two", shared, *settings)
    asked = queries(tmp_path / "two")
    again = asked["case_id"].duplicated() & (asked["round"] > 0)
    assert (asked[again]["foreground_voxels"] > 0).any()
    one, two = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert one["foreground_voxels"][0] == two["foreground_voxels"][0]
    assert two["foreground_voxels"][1] > two["foreground_voxels"][0]


def test_a_budget_that_the_initial_regions_spend_is_spoken_of_before_training(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = ("strategy=random", *PATCHES, "cost=voxels", "steps_per_round=1", "val_interval=1")
    run_smoke(tmp_path / "spent", shared, *settings, "pool.budget=4000")
    said = [index for index, text in enumerate(caplog.messages) if "the initial labels" in text]
    trained = [index for index, text in enumerate(caplog.messages) if "step 1/1" in text]
    assert len(said) == 1
    assert said[0] < min(trained)
    assert "cost 4608 (cost=voxels), and pool.budget is 4000" in caplog.messages[said[0]]
    assert "the budget is spent: 4608 of 4000 after round 1 of 2" in caplog.messages
    caplog.clear()
    run_smoke(tmp_path / "enough", shared, *settings, "pool.budget=5000")
    assert "the initial labels" not in caplog.text


def test_full_data_is_labelled_as_a_whole(shared: Path, tmp_path: Path) -> None:
    state = run_smoke(tmp_path, shared, *PATCHES, "strategy=full")
    assert "regions" not in state["pool"]
    assert pd.read_csv(tmp_path / "metrics.csv")["cost"].tolist() == [7]


def test_the_effort_of_a_case_is_counted_once_a_query(shared: Path, tmp_path: Path) -> None:
    effort = (
        "effort.minutes_per_case=10",
        "effort.minutes_per_region=1",
        "effort.minutes_per_cm=0",
    )
    run_smoke(tmp_path, shared, *PATCHES, "strategy=entropy", "cost=effort", *effort)
    rows = queries(tmp_path)
    by_round = rows.groupby("round")
    expected = 10 * by_round["case_id"].nunique() + by_round["case_id"].size()
    assert by_round["cost"].sum().tolist() == expected.tolist()
    assert rows["effort"].tolist() == rows["cost"].tolist()


def test_pictures_show_the_region(shared: Path, tmp_path: Path) -> None:
    run_smoke(tmp_path, shared, *PATCHES, "strategy=entropy", "pictures=3", "save_maps=true")
    folder = tmp_path / "rounds" / "round_01"
    rows = queries(tmp_path).query("round == 1")
    names = [f"{row.rank:02d}_{row.case_id}.png" for row in rows.itertuples(index=False)]
    assert sorted(p.name for p in (folder / "pictures").iterdir()) == sorted(names)
    maps = {
        f"{case}_{kind}.nii.gz"
        for case in rows["case_id"]
        for kind in ("prediction", "uncertainty")
    }
    assert {p.name for p in (folder / "maps").iterdir()} == maps


def test_pictures_of_slices_show_them_from_the_front(
    train: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "_save", lambda figure, _: drawn.append(figure))
    root = of_spacings(tmp_path / "data", (3, 1, 1))
    run = train(
        "strategy=entropy", *SLICES, "pictures=1", "steps_per_round=1", "data.preprocess=[]",
        f"data.task.root={root}",
    )  # fmt: skip
    assert run.exit_code == 0, run.err
    (overlay,) = [figure for figure in drawn if figure.get_suptitle()]
    title = " ".join(overlay.get_suptitle().split())
    assert "sagittal slice" in title
    assert "Dice over what is annotated" in title
    rows, columns = overlay.axes[0].images[0].get_array().shape
    (outline,) = overlay.axes[0].patches
    assert (outline.get_height(), outline.get_width()) == (rows, columns)


def test_scores_name_the_regions(shared: Path, tmp_path: Path) -> None:
    run_smoke(tmp_path, shared, *PATCHES, "strategy=kmeans_bald")
    folder = tmp_path / "rounds" / "round_01"
    scores = pd.read_csv(folder / "scores.csv")
    assert scores.columns.tolist() == ["case_id", "region", "score", "n_passes"]
    assert scores.groupby("case_id").size().max() <= 3
    features = pd.read_csv(folder / "features.csv", index_col=0)
    labelled = json.loads((tmp_path / "state.json").read_text())["queries"][:4]
    names = {f"{row['case_id']}[{row['region']}]" for row in labelled}
    assert names <= set(features.index)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy=foreground_entropy",), "the aggregation foreground_mean, which is for whole"),
        (("strategy=mi_entropy",), "a similarity of images"),
        (("strategy=oracle_dice",), "the aggregation hidden_dice_error"),
        (("semi_supervised=pseudo_label",), "use semi_supervised=none"),
        (("pool.start=diverse",), "chooses whole volumes"),
        (("pool.start=typical",), "chooses whole volumes"),
        (("pool.repeat_uncertain=true",), "no region is asked for twice"),
        (("oracle=person",), "hands out whole volumes"),
        (("data/splits=growing",), "validates with annotated cases"),
        (("data/splits=annotated", "validation=cross"), "=cross validates with annotated cases"),
        (("validation=cross",), "use validation=held_out and a split with a validation part"),
        (("data.validation_share=0",), "with a data.validation_share above 0"),
        (
            ("pool.initial=5000",),
            "only .* regions, drawn one after another, found room in the 7 training",
        ),
        (("+effort.minutes_per_hour=1",), "effort has no setting 'minutes_per_hour'"),
        (("effort.minutes_per_case=-1",), "effort.minutes_per_case is -1"),
    ],
)
def test_what_does_not_work_with_regions_is_refused(
    shared: Path, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_smoke(tmp_path, shared, *PATCHES, *overrides)


def test_a_whole_volume_run_knows_no_regions(shared: Path, tmp_path: Path) -> None:
    state: dict[str, Any] = run_smoke(tmp_path, shared, "strategy=entropy")
    assert "regions" not in state["pool"]
    assert queries(tmp_path).columns.tolist() == ["round", "case_id", "score", "rank", "cost"]


def of_spacings(root: Path, *spacings: tuple[float, float, float]) -> Path:
    """Ten noisy volumes of 16 x 16 x 16 voxels, whose spacings take turns."""
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(16, 16, 16)).astype(np.float32) for _ in range(10)]
    affines = [np.diag([*spacings[i % len(spacings)], 1.0]) for i in range(10)]
    labels = [(image > 1).astype(np.uint8) for image in images]
    return write_msd(root, images, labels, affines=affines)


def test_a_run_says_how_many_voxels_its_regions_have(
    train: Callable[..., Outcome], tmp_path: Path
) -> None:
    root = of_spacings(tmp_path / "data", (1, 1, 3), (1.5, 1, 4))
    settings = (
        "strategy=random", "pool.rounds=1", "pool.initial=2", "steps_per_round=1", "pictures=0",
        f"data.task.root={root}", "data.preprocess=[]",
    )  # fmt: skip
    in_mm = train(*settings, "pool.unit=patch", "pool.patch_mm=[6,6,6]")
    assert in_mm.exit_code == 0, in_mm.err
    assert "patches have 4-6 x 6 x 2 voxels of the files (" in in_mm.out
    large = train(*settings, "pool.unit=patch", "pool.patch_voxels=99")
    assert "16 x 16 x 16 voxels of the files (6 volumes, of which 6 are no larger" in large.out
    slices = train(*settings, "pool.unit=slice")
    assert "slices lie across axis 2 of the files (6 volumes)" in slices.out
    thin = train(*settings, "pool.unit=patch", "pool.patch_mm=[6,6,2]")
    assert thin.exit_code == 2
    assert "pool.patch_mm is 2 along axis 2 of the files, but voxels measure up to 4 mm there" in (
        thin.err
    )
    assert "set 4 or more for that axis, or use pool.patch_voxels" in thin.err
