"""Two processes over gloo: the same scores and queries, and Dice over the same cases, as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from alseg.active.acquisition_callback import AcquisitionCallback
from alseg.active.initial_state import initial_pool
from alseg.active.query_selection import Chooser, Chosen
from alseg.config.build import build
from alseg.config.composition import conf_folder
from alseg.core.errors import ConfigError
from alseg.core.units import whole
from alseg.run.state import RunState
from alseg.scoring.scorer import Scoring
from alseg.training.callbacks.predictions import predict
from alseg.training.fit import BEST, LAST, load_weights
from alseg.training.scoring_module import ScoringModule
from alseg.training.trainers import check_devices, n_devices


def smoke(folder: Path, *overrides: str) -> list[str]:
    """A smoke run: a pool of 5 after the initial 2, shared unevenly by two processes."""
    settings = ["experiment=smoke", "tracking=none", "strategy=variance", "steps_per_round=2"]
    return [*settings, "val_interval=1", f"output_dir={folder}", *overrides]


def torchrun(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "-m", "alseg.train", *smoke(folder, *overrides)]
    return subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The output folder, the run folder and the output of a run in two processes."""
    output_dir = tmp_path_factory.mktemp("ddp")
    ended = torchrun(output_dir, "trainer=ddp", "trainer.accelerator=cpu")
    assert ended.returncode == 0, ended.stdout
    (folder,) = [p.parent for p in (output_dir / "smoke").glob("*/state.json")]
    return output_dir, folder, ended.stdout


def config_of(*overrides: str) -> DictConfig:
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        config = compose("config", list(overrides))
    OmegaConf.resolve(config)
    return config


def test_two_processes_finish_a_run_in_one_folder(finished: tuple[Path, Path, str]) -> None:
    output_dir, folder, output = finished
    state = RunState.load(folder)
    assert [row["labelled"] for row in state.history] == [2, 4]
    assert len(list((output_dir / "smoke").iterdir())) == 1  # no second process's folder
    assert output.count("round 2/2 done") == 1  # only the first process talks
    for round_number in (1, 2):
        cases = pd.read_csv(folder / f"rounds/round_{round_number:02d}/cases.csv")
        assert sorted(cases["case_id"]) == sorted(set(cases["case_id"]))
        assert dict(cases["part"].value_counts()) == {"val": 2, "test": 3}  # each case once
    # the optimiser made the steps that were asked for, not half or twice as many
    last = torch.load(folder / f"rounds/round_01/{LAST}.ckpt", weights_only=True)
    assert last["global_step"] == 2


def test_two_processes_ask_for_regions_that_do_not_overlap(tmp_path: Path) -> None:
    regions = ("strategy=kmeans_bald", "pool.unit=patch", "pool.patch_voxels=12")
    sizes = ("pool.initial=3", "pool.query_size=4", "uncertainty.n_passes=1", "pictures=0")
    ended = torchrun(tmp_path, "trainer=ddp", "trainer.accelerator=cpu", *regions, *sizes)
    assert ended.returncode == 0, ended.stdout
    (folder,) = [p.parent for p in (tmp_path / "smoke").glob("*/state.json")]
    state = RunState.load(folder)
    assert [row["labelled"] for row in state.history] == [3, 7]
    assert len(state.pool.regions) == 7  # a pool refuses regions that overlap
    scores = pd.read_csv(folder / "rounds/round_01/scores.csv")
    assert not scores.duplicated(["case_id", "region"]).any()
    assert scores["case_id"].nunique() == 7  # all of the pool, each looked at by one of the two


def test_one_process_scores_and_selects_the_same(
    finished: tuple[Path, Path, str], tmp_path: Path
) -> None:
    output_dir, folder, _ = finished
    round_folder = folder / "rounds/round_01"
    config = config_of(*smoke(output_dir, "trainer=cpu"))
    experiment = build(config, tmp_path)
    pool = initial_pool(experiment)
    assert len(pool.unlabelled) == 5
    data, plan = experiment.data, experiment.plan
    data.reveal(
        experiment.oracle.annotate(whole((*data.splits.validation, *data.splits.test))).by_case
    )
    data.start_round(data.splits.parts(pool.labelled), 1, plan.steps_per_round)
    module = experiment.make_module(experiment.make_network(), experiment.round_recipe)
    load_weights(module.network, round_folder / f"{BEST}.ckpt")
    scoring = Scoring(
        experiment.strategy, experiment.source, experiment.scoring_inferer, plan.seed, 1
    )
    chooser = Chooser(
        experiment.strategy,
        plan.query_size,
        plan.seed,
        plan.rounds,
        1,
        pool,
        pool.unlabelled,
        pool.labelled,
    )
    noted: list[Chosen] = []
    acquisition = AcquisitionCallback(
        chooser, experiment.oracle, experiment.answer_costs, noted.append
    )
    scorer = ScoringModule(module.network, scoring)
    predict(experiment.make_trainer, scorer, data.volumes(pool.unlabelled), [acquisition])

    two = pd.read_csv(round_folder / "scores.csv").set_index("case_id")["score"].to_dict()
    scores = {s.case_id: s.score for s in noted[0].case_scores}
    assert scores == pytest.approx(two, rel=1e-6)
    one = [row["case_id"] for row in acquisition.annotate(noted[0]).queries]
    assert one == [row["case_id"] for row in RunState.load(folder).queries if row["round"] == 1]

    trainer = experiment.make_trainer(logger=False)
    volumes = data.evaluation_volumes(data.splits.test, in_source=True)
    trainer.test(module, volumes, verbose=False)
    cases = pd.read_csv(round_folder / "cases.csv").set_index("case_id")
    by_case = module.case_metrics.table().set_index("case_id")
    pd.testing.assert_frame_equal(
        by_case.sort_index(), cases[cases["part"] == "test"].drop(columns="part").sort_index()
    )
    two_processes = pd.read_csv(round_folder / "calibration.csv")
    pd.testing.assert_frame_equal(module.calibration.table(), two_processes)
    assert module.case_metrics.mean() == pytest.approx(
        RunState.load(folder).history[0]["test_dice"], abs=1e-9
    )


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"devices": 1, "accelerator": "auto"}, 1),
        ({"devices": 2, "accelerator": "cpu", "num_nodes": 3}, 6),
        ({"devices": [0, 3], "accelerator": "gpu"}, 2),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
    ],
)
def test_devices_are_counted(trainer: dict[str, object], expected: int) -> None:
    assert n_devices(trainer) == expected


def test_devices_as_text_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer.devices is '0,1'"):
        n_devices({"devices": "0,1", "accelerator": "gpu"})


def test_several_devices_without_torchrun_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"torchrun --nproc-per-node 2 -m alseg.train"):
        check_devices({"devices": 2, "accelerator": "cpu"})


def test_a_batch_that_cannot_be_shared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in ("RANK", "LOCAL_RANK", "GROUP_RANK"):
        monkeypatch.setenv(rank, "0")
    overrides = smoke(tmp_path, "trainer=ddp", "trainer.accelerator=cpu", "data.batch_size=3")
    with pytest.raises(ConfigError, match=r"data.batch_size is 3.*multiple of the 2 devices"):
        build(config_of(*overrides), tmp_path)
