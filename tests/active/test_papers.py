"""The parts of the two papers: runs, and resuming at a round boundary."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from alseg.active.experiment import Experiment
from alseg.active.proxy_settings import Proxy
from alseg.active.round_loop import run_round
from alseg.config.build import proxy_key
from alseg.core.errors import DataError, TrainingError
from alseg.data.cache import VolumeCache
from alseg.data.formats.msd import read_msd
from alseg.data.pseudo_labelled import IntensityLabel
from alseg.data.task import Task
from alseg.run.state import RunState
from alseg.scoring.sources import MCDropout
from alseg.strategies.selectors import noisy
from alseg.strategies.strategy import Strategy
from alseg.system.interruption import Interrupted
from alseg.training.module import SegmentationModule
from tests.conftest import Outcome
from tests.smoke_runs import run_smoke, smoke_config

QUICK = (
    "steps_per_round=2",
    "val_interval=1",
    "strategy=entropy",
    "data.inferer.roi_size=[32,32,32]",
)


def initial(state: dict) -> list[str]:
    return [row["case_id"] for row in state["queries"] if row["round"] == 0]


ALL_PARTS = (
    "strategy=mi_entropy",
    "uncertainty=svgd",
    "uncertainty.n_particles=2",
    "pool.repeat_uncertain=true",
    "pool.start=proxy",
    "semi_supervised=pseudo_label",
)


def test_all_parts_run_together_and_resume_at_a_round_boundary(
    train: Callable[..., Outcome], shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_smoke(tmp_path / "whole", shared, *QUICK, *ALL_PARTS)
    assert [row["round"] for row in whole["history"]] == [1, 2]
    # the query can be retraced from what is written down
    scores = pd.read_csv(tmp_path / "whole/rounds/round_01/scores.csv", index_col="case_id")
    scaled = (scores - scores.min()) / (scores.max() - scores.min())
    keys = (scaled["score"] - scaled["similarity"]).sort_values(ascending=False)
    query = [row["case_id"] for row in whole["queries"] if row["round"] == 1]
    assert query == keys.index[: len(query)].tolist()

    def stop_after_one(experiment: Experiment, state: RunState) -> RunState:
        run_round(experiment, state)
        raise KeyboardInterrupt

    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr("alseg.active.round_loop.remaining_rounds", stop_after_one)
        with pytest.raises(Interrupted):
            run_smoke(folder, shared, *QUICK, *ALL_PARTS)
    assert json.loads((folder / "state.json").read_text())["finished_rounds"] == 1
    assert not (folder / "rounds" / "round_01" / "pseudo_labels").exists()
    assert train(resume=folder, smoke=False).exit_code == 0
    resumed = json.loads((folder / "state.json").read_text())
    for part in ("history", "queries", "pool"):
        assert resumed[part] == whole[part]


def test_svgd_of_one_particle_is_the_plain_run(shared: Path, tmp_path: Path) -> None:
    common = (*QUICK, "pool.rounds=1", "strategy=random")
    one = ("uncertainty=svgd", "uncertainty.n_particles=1", "uncertainty.loss=null")
    svgd = run_smoke(tmp_path / "svgd", shared, *common, *one)
    plain = run_smoke(tmp_path / "plain", shared, *common)
    assert svgd["history"] == plain["history"]


def test_proxy_start_is_shared_by_strategies_and_trained_for_once(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = (*QUICK, "pool.rounds=1", "pool.start=proxy", "proxy.steps=2", "pool.initial=3")
    first = run_smoke(tmp_path / "a", shared, *common, "strategy=random", "proxy=diverse")
    assert len(set(initial(first))) == 3

    def refuse(*args: object) -> None:
        raise AssertionError("the proxy task was trained again")

    monkeypatch.setattr("alseg.active.initial_pool_from_proxy.trained_on_proxy", refuse)
    svgd = ("uncertainty=svgd", "uncertainty.n_particles=2")
    again = run_smoke(tmp_path / "b", shared, *common, *svgd, "proxy=diverse")
    assert initial(again) == initial(first)
    nowhere = ("proxy.labels.CT.window=[7,8]", "trainer=cpu")
    with pytest.raises(DataError, match="finds no foreground"):
        run_smoke(tmp_path / "c", shared, *common, *nowhere)
    with pytest.raises(Exception, match=r"proxy\.modality"):  # Hydra wraps it
        run_smoke(tmp_path / "d", shared, *common, "proxy.modality=PET")


def test_a_loss_of_the_proxy_task_that_is_not_finite_is_told(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(module: SegmentationModule, network: nn.Module, batch: Any) -> torch.Tensor:
        return network(batch["image"]).sum() * torch.nan

    monkeypatch.setattr(SegmentationModule, "batch_loss", spoiled)
    proxy = ("pool.start=proxy", "proxy.steps=3", "pool.rounds=1", "seed=91")
    with pytest.raises(TrainingError, match="loss is not finite in step 1, in phantom_"):
        run_smoke(tmp_path / "a", shared, *QUICK, *proxy)
    assert (tmp_path / "a" / "nonfinite_proxy.pt").is_file()


@pytest.mark.parametrize(
    ("channel", "modality"),
    [("CT", "CT"), ("cta", "CT"), ("CBCT_0", "CT"), ("MRI", "MRI"), ("T1", "MRI"), ("DWI", "MRI")],
)
def test_the_modality_is_read_off_the_channels_name(channel: str, modality: str) -> None:
    labels = {"CT": IntensityLabel(side="both"), "MRI": IntensityLabel(side="above")}
    task = Task("any", Path(), (channel,), ("background", "organ"), {})
    strategy = Strategy("random", noisy.random)
    proxy = Proxy(labels, strategy, MCDropout(1), steps=1)
    assert proxy.label_of(task) is labels[modality]


def test_the_proxy_start_is_that_of_these_images(phantoms: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(phantoms, tmp_path / "copy")
    cache = VolumeCache(read_msd(copy), [], "none", tmp_path)
    config, cases = smoke_config(tmp_path), ["phantom_000", "phantom_001"]
    before = proxy_key(config, cache, cases)
    assert proxy_key(config, cache, cases) == before
    assert proxy_key(config, cache, cases[:1]) != before
    os.utime(copy / "imagesTr" / "phantom_001.nii.gz", (1, 1))
    assert proxy_key(config, cache, cases) != before


def test_the_proxy_start_is_that_of_the_seed_of_labels(phantoms: Path, tmp_path: Path) -> None:
    cache = VolumeCache(read_msd(phantoms), [], "none", tmp_path)

    def key(*settings: str) -> str:
        return proxy_key(smoke_config(tmp_path, *settings), cache, ["phantom_000"])

    assert key("seed=3") != key("seed=4")
    assert key("seed=3") == key("seed=4", "pool.label_seed=3")
    assert key("seed=3") != key("seed=3", "pool.label_seed=0")


def test_the_second_stage_reads_no_hidden_label_and_keeps_the_better_weights(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revealed: list[str] = []
    label = VolumeCache.label

    def recorded(self: VolumeCache, case_id: str, *arguments: Any) -> torch.Tensor:
        revealed.append(case_id)
        return label(self, case_id, *arguments)

    monkeypatch.setattr(VolumeCache, "label", recorded)
    stage = ("semi_supervised=pseudo_label", "semi_supervised.step_share=0.5", "pool.rounds=1")
    state = run_smoke(tmp_path / "run", shared, *QUICK, *stage, "steps_per_round=6")
    assert not set(revealed) & set(state["pool"]["unlabelled"])
    assert len(state["pool"]["unlabelled"]) == 5
    folder = tmp_path / "run" / "rounds" / "round_01"
    best = torch.load(folder / "best.ckpt", weights_only=True)
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert best["global_step"] <= 3  # counted from the start of its stage
    assert last["state_dict"].keys() == best["state_dict"].keys()
    cases = pd.read_csv(folder / "cases.csv")
    dice = cases[cases["part"] == "val"][["dice_liver", "dice_tumour"]].mean().mean()
    assert dice == pytest.approx(state["history"][0]["val_dice"])


@pytest.mark.parametrize("name", ["nath2020_hippocampus", "nath2022_liver", "nath2022_hippocampus"])
def test_the_experiments_compose(name: str, tmp_path: Path) -> None:
    config = smoke_config(tmp_path, f"experiment={name}", "data.root=/nowhere")
    assert config.experiment_name == name
