"""The maps and the notebook, on the run folders of two smoke runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from alseg.comparison.runs import find_run_folders, read_run
from alseg.core.errors import ConfigError, DataError
from alseg.engine.maps import case_maps
from alseg.strategies.measures import variance
from tests.smoke_runs import run_smoke

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "scripts" / "results_uncertainty_analysis.ipynb"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random and a variance run on phantoms."""
    folder = tmp_path_factory.mktemp("smoke")
    for strategy in ("random", "variance"):
        run_smoke(folder / strategy, folder, f"strategy={strategy}", "pictures=1")
    return folder


def run_folder(smoke: Path, strategy: str) -> Path:
    folders = find_run_folders([smoke])
    return next(folder for folder in folders if read_run(folder).strategy == strategy)


def test_maps_are_what_the_query_was_scored_by(smoke: Path, tmp_path: Path) -> None:
    folder = run_folder(smoke, "variance")
    query = next(q for q in read_run(folder).state.queries if q["round"] == 1)
    (maps,) = case_maps(folder, 1, [query["case_id"]], variance)
    assert maps.image.shape == maps.prediction.shape == maps.uncertainty.shape
    # the strategy's score is the mean of its map
    assert float(maps.uncertainty.double().mean()) == pytest.approx(query["score"], rel=1e-4)
    assert set(maps.prediction.unique().tolist()) <= {0, 1, 2}
    assert maps.draw(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_strategy_without_scores_has_maps_too(smoke: Path) -> None:
    folder = run_folder(smoke, "random")
    case_id = read_run(folder).state.pool.labelled[0]
    (maps,) = case_maps(folder, 2, [case_id])
    assert torch.isfinite(maps.uncertainty).all()
    assert float(maps.uncertainty.max()) > 0


def test_missing_checkpoints_and_cases_are_told(smoke: Path, tmp_path: Path) -> None:
    folder = run_folder(smoke, "random")
    with pytest.raises(ConfigError, match=r"round is 9, and the run in .* the rounds 1 to 2"):
        case_maps(folder, 9, ["phantom_000"])
    assert not (folder / "rounds" / "round_09").exists()
    with pytest.raises(ConfigError, match="nobody is not a case of"):
        case_maps(folder, 1, ["nobody"])
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "rounds" / "round_02" / "best.ckpt").unlink()
    with pytest.raises(DataError, match=r"there is no .*round_02/best\.ckpt"):
        case_maps(copy, 2, ["phantom_000"])


def test_the_notebook_runs_and_is_stored_without_outputs(
    smoke: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    assert all(not cell.get("outputs") for cell in stored.cells)
    monkeypatch.setenv("ALSEG_RUNS", str(smoke))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    client = NotebookClient(stored, timeout=300, startup_timeout=300, kernel_name="python3")
    done = client.execute(cwd=str(NOTEBOOK.parent))
    shown = [
        output["data"]
        for cell in done.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output
    ]
    pictures = [data for data in shown if "image/png" in data]
    assert (
        len(pictures) >= 4 + 4
    )  # two measures of two cases; curves, classes, differences, queries
    text = " ".join(data.get("text/markdown", "") for data in shown)
    assert "mean test Dice" in text
    assert "too few for a test" in text
