"""strategy=class_balanced_typiclust: what has been revealed steers what is asked for."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from alseg.data.formats.msd import read_msd
from alseg.data.phantom import write_phantom_dataset
from tests.data.test_datamodule import make_data, start
from tests.smoke_runs import run_smoke

SETTINGS = (
    "strategy=class_balanced_typiclust", "pool.initial=4", "pool.query_size=4", "pool.rounds=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def few_tumours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of which three in ten have a tumour."""
    folder = tmp_path_factory.mktemp("few_tumours")
    return write_phantom_dataset(folder, n_volumes=24, size=32, tumour_rate=0.3, hard_fraction=0)


def classes_of(label: Path) -> np.ndarray:
    """Whether liver and tumour are in a label file."""
    return np.isin([1, 2], np.asarray(nibabel.load(label).dataobj))  # type: ignore[attr-defined]


def test_the_highest_scores_take_the_places_that_a_rare_class_needs(
    few_tumours: Path, shared: Path, tmp_path: Path
) -> None:
    run_smoke(tmp_path / "run", shared, *SETTINGS, f"data.task.root={few_tumours}")
    queries = pd.read_csv(tmp_path / "run" / "queries.csv")
    cases = read_msd(few_tumours).cases
    n_by_score = []
    for number in (1, 2):
        labelled = queries.loc[queries["round"] < number, "case_id"]
        held = np.array([classes_of(cases[i].label) for i in labelled]).sum(axis=0)
        is_rare = held.min() < len(labelled) / 2
        n = min(4, math.ceil((len(labelled) + 4) / 2) - held.min()) if is_rare else 0
        query = queries[queries["round"] == number].sort_values("rank")["case_id"].tolist()
        scores = pd.read_csv(tmp_path / "run" / "rounds" / f"round_{number:02d}" / "scores.csv")
        best = scores.sort_values("score", ascending=False, kind="stable")["case_id"].tolist()
        assert query[:n] == best[:n]
        n_by_score.append(n)
    assert any(n_by_score)


def test_where_no_class_is_rare_the_query_goes_to_fresh_groups(
    shared: Path, tmp_path: Path
) -> None:
    root = write_phantom_dataset(
        tmp_path / "tumours", n_volumes=24, size=32, tumour_rate=1, hard_fraction=0
    )
    settings = (*SETTINGS, "pool.rounds=2", f"data.task.root={root}", "data.groups='phantom_..(.)'")
    state = run_smoke(tmp_path / "run", shared, *settings)
    queries = pd.read_csv(tmp_path / "run" / "queries.csv")
    first, query = (queries.loc[queries["round"] == n, "case_id"].str[-1].tolist() for n in (0, 1))
    fresh = {case_id[-1] for case_id in state["pool"]["unlabelled"]} | {*query}
    n_fresh = min(4, len(fresh - {*first}))
    assert n_fresh > 1
    assert len({*query[:n_fresh]} - {*first}) == n_fresh


def test_what_a_partly_revealed_label_holds_is_what_has_been_revealed(
    phantoms: Path, tmp_path: Path
) -> None:
    data = make_data(phantoms, tmp_path)
    ids = sorted(data.cache.task.cases)
    start(data, data.splits, ids)
    found = data.foreground_classes(ids)
    expected = [classes_of(data.cache.task.cases[i].label) for i in ids]
    assert found.dtype == bool
    assert np.array_equal(found, expected)
    assert found[:, 0].all()
    assert not found[:, 1].all()
    assert data.foreground_classes([]).shape == (0, 2)


@pytest.mark.parametrize(
    "unit", [("pool.unit=patch", "pool.patch_voxels=12"), ("pool.unit=slice",)]
)
def test_regions_are_queried_too(
    unit: tuple[str, ...], few_tumours: Path, shared: Path, tmp_path: Path
) -> None:
    unit = (*unit, f"data.task.root={few_tumours}")
    state = run_smoke(
        tmp_path, shared, *SETTINGS, *unit, "pool.rounds=2", "strategy/aggregation=mean"
    )
    assert len(state["pool"]["regions"]) == 8
