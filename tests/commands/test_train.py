"""The main job from the command line."""

import filecmp
import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir

from alseg.config.composition import conf_folder
from alseg.core.area_under_curve import area_under_budget_curve
from alseg.data.formats.msd import read_msd
from alseg.run.state import RunState
from alseg.system.files import read_tensors
from tests import bad_input
from tests.conftest import Outcome, write_msd
from tests.tracking.builders import history, stored_runs

Train = Callable[..., Outcome]


def state_of(folder: Path) -> dict:
    """state.json without what may differ between equal runs."""
    content = json.loads((folder / "state.json").read_text())
    for key in ("timings", "sha256"):
        del content[key]
    return content


def test_a_run_leaves_what_the_readme_promises(train: Train, phantoms: Path) -> None:
    run = train("strategy=variance", "save_maps=true", tracking="mlflow")
    assert run.exit_code == 0, run.err
    state = RunState.load(run.folder)
    assert state.finished_rounds == 2
    assert [row["labelled"] for row in state.history] == [2, 4]

    metrics = pd.read_csv(run.folder / "metrics.csv")
    assert metrics["labelled"].tolist() == [2, 4]
    for part in ("val", "test"):
        mean = metrics[[f"{part}_dice_liver", f"{part}_dice_tumour"]].mean(axis=1)
        np.testing.assert_allclose(metrics[f"{part}_dice"], mean)
    assert (metrics["training_seconds"] > 0).all()
    assert metrics["scoring_seconds"][0] > 0

    queries = pd.read_csv(run.folder / "queries.csv")
    assert queries["round"].tolist() == [0, 0, 1, 1]
    assert queries["rank"].tolist() == [1, 2, 1, 2]
    assert tuple(queries["case_id"]) == state.pool.labelled
    scores = pd.read_csv(run.folder / "rounds/round_01/scores.csv").set_index("case_id")["score"]
    acquired = queries[queries["round"] == 1]
    assert acquired["score"].tolist() == pytest.approx(scores.nlargest(2).tolist())
    assert len(scores) == len(state.pool.unlabelled) + 2

    cases = pd.read_csv(run.folder / "rounds/round_02/cases.csv")
    assert cases["part"].value_counts().to_dict() == {"test": 3, "val": 2}
    test_cases = cases[cases["part"] == "test"]
    assert test_cases["dice_liver"].mean() == pytest.approx(metrics["test_dice_liver"][1])

    # calibration.csv counts each voxel of the test volumes, and the annotated foreground adds up,
    # on the grid of 10 mm that the files are resampled to
    def voxels_on_grid(case_id: str, *, foreground: bool) -> float:
        label = nibabel.load(phantoms / f"labelsTr/{case_id}.nii.gz")
        n_voxels = np.count_nonzero(label.get_fdata()) if foreground else np.prod(label.shape)
        return n_voxels * np.prod(label.header.get_zooms()) / 10**3

    calibration = pd.read_csv(run.folder / "rounds/round_02/calibration.csv")
    expected = sum(voxels_on_grid(case_id, foreground=False) for case_id in test_cases["case_id"])
    assert calibration["n_voxels"].sum() == pytest.approx(expected, rel=0.1)
    assert calibration.dropna()["accuracy"].between(0, 1).all()
    annotated = [voxels_on_grid(case_id, foreground=True) for case_id in queries["case_id"]]
    expected = [sum(annotated[:2]), sum(annotated)]
    assert metrics["foreground_voxels"].tolist() == pytest.approx(expected, rel=0.1)

    assert (run.folder / "config.yaml").is_file()
    assert (run.folder / "learning_curve.png").stat().st_size > 10_000
    top = acquired["case_id"].iloc[0]
    assert (run.folder / f"rounds/round_01/pictures/01_{top}.png").stat().st_size > 10_000
    for name in ("best", "last"):
        torch.load(run.folder / f"rounds/round_02/{name}.ckpt", weights_only=True)

    # Maps lie over the source image, voxel by voxel.
    for case_id in acquired["case_id"]:
        source = nibabel.load(read_msd(phantoms).cases[case_id].images[0])
        for kind in ("prediction", "uncertainty"):
            path = run.folder / f"rounds/round_01/maps/{case_id}_{kind}.nii.gz"
            volume = nibabel.load(path)
            assert volume.shape == source.shape
            np.testing.assert_allclose(volume.affine, source.affine, atol=1e-4)
    assert "area under the budget curve" in run.out
    assert "python -m alseg.ui sqlite:///runs/mlflow.db --experiment smoke" in run.out
    assert str(run.folder / "learning_curve.png") in run.out
    check_tracking(run, metrics)


def check_tracking(run: Outcome, metrics: pd.DataFrame) -> None:
    from mlflow import MlflowClient

    client = MlflowClient("sqlite:///runs/mlflow.db")
    experiment = client.get_experiment_by_name("smoke")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    (parent,) = parents
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["strategy"] == "variance"
    assert parent.data.params["pool.query_size"] == "2"
    history = client.get_metric_history(parent.info.run_id, "dice/test")
    assert [(m.step, m.value) for m in history] == list(
        zip(metrics["labelled"], metrics["test_dice"], strict=True)
    )
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    expected = {"config.yaml", "state.json", "queries.csv", "metrics.csv", "learning_curve.png"}
    assert expected | {"rounds"} <= files
    stored = {f.path for f in client.list_artifacts(parent.info.run_id, "rounds/round_02")}
    assert "rounds/round_02/cases.csv" in stored
    assert not {path for path in stored if path.endswith(".ckpt")}  # they are in the run folder
    assert parent.data.tags["run_folder"] == str(run.folder)
    assert parent.data.tags["mlflow.note.content"].startswith("Strategy variance on ")
    assert parent.data.metrics["area"] == pytest.approx(
        area_under_budget_curve(metrics["labelled"].tolist(), metrics["test_dice"].tolist())
    )
    assert {"pool/cost", "time/training", "dice/val", "dice/test/liver"} <= set(parent.data.metrics)
    assert not [name for name in parent.data.params if name.endswith("_target_")]

    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(r.data.tags["round"] for r in children) == ["1", "2"]
    for child in children:
        assert "strategy" not in child.data.tags
        assert child.info.status == "FINISHED"
        steps = [m.step for m in client.get_metric_history(child.info.run_id, "dice/val")]
        assert steps[:2] == [1, 3]  # Lightning counts steps from 0: after steps 2 and 4


def test_equal_seeds_give_equal_runs_and_other_seeds_others(train: Train) -> None:
    one, same, other = train("seed=3"), train("seed=3"), train("seed=4")
    assert state_of(one.folder) == state_of(same.folder)
    for name in ("queries.csv", "rounds/round_02/cases.csv", "rounds/round_01/scores.csv"):
        assert filecmp.cmp(one.folder / name, same.folder / name, shallow=False), name
    assert state_of(one.folder)["history"] != state_of(other.folder)["history"]


@pytest.mark.parametrize(
    "settings",
    [
        ("pool.candidates=3",),
        ("pool.unit=patch", "pool.patch_voxels=[12,12,8]"),
        ("pool.start=proxy", "proxy.steps=2"),
    ],
)
def test_a_seed_of_its_own_keeps_the_labels_while_the_training_is_repeated(
    train: Train, settings: tuple[str, ...]
) -> None:
    common = ("strategy=random", "steps_per_round=2", "val_interval=2", *settings)
    runs = [train(*common, "seed=3"), train(*common, "seed=4", "pool.label_seed=3")]
    one, two = (state_of(run.folder) for run in runs)
    assert one["queries"] == two["queries"]
    assert all(a != b for a, b in zip(one["history"], two["history"], strict=True))
    assert state_of(train(*common, "seed=4").folder)["queries"] != one["queries"]


def test_strategies_of_a_seed_start_alike(train: Train) -> None:
    runs = {name: train(f"strategy={name}") for name in ("random", "variance", "entropy")}
    states = {name: RunState.load(run.folder) for name, run in runs.items()}
    assert len({state.pool.labelled[:2] for state in states.values()}) == 1
    # The same first round, so the same first point of each learning curve.
    assert len({json.dumps(state.history[0]) for state in states.values()}) == 1


def test_full_data_labels_everything_and_stops(train: Train) -> None:
    run = train("strategy=full")
    state = RunState.load(run.folder)
    assert [row["labelled"] for row in state.history] == [7]
    assert state.pool.unlabelled == ()
    assert "the pool has run dry: all 7 volumes were labelled in round 1 of 2" in run.out


@pytest.mark.parametrize(("round_start", "n_steps"), [("scratch", 2), ("continue", 4)])
def test_full_data_train_as_long_as_the_network_of_the_last_round(
    train: Train, round_start: str, n_steps: int
) -> None:
    steps = ("steps_per_round=2", "pool.rounds=2")
    run = train("strategy=full", f"round_start={round_start}", *steps)
    assert run.exit_code == 0, run.err
    assert read_tensors(run.folder / "rounds/round_01/last.ckpt")["global_step"] == n_steps


def test_the_pool_runs_dry_with_a_summary(train: Train) -> None:
    run = train("pool.initial=3", "pool.query_size=3", "pool.rounds=9")
    assert run.exit_code == 0, run.err
    state = RunState.load(run.folder)
    assert [row["labelled"] for row in state.history] == [3, 6, 7]
    assert "the pool has run dry" in run.out
    assert "area under the budget curve" in run.out


def test_a_round_continues_from_the_best_weights(train: Train) -> None:
    # With next to no learning rate the weights stay what they were at the start of the round.
    frozen = ("training.learning_rate=1e-30", "training=adam")
    weights = {}
    for start in ("scratch", "continue", "continue_last"):
        run = train(f"round_start={start}", "steps_per_round=2", *frozen)
        assert run.exit_code == 0, run.err
        for number in (1, 2):
            path = run.folder / f"rounds/round_0{number}/best.ckpt"
            content = torch.load(path, weights_only=True)["state_dict"]
            buffers = [v for k, v in content.items() if k.endswith("num_batches_tracked")]
            weights[start, number] = int(buffers[0])
    # Batch norm counts the batches that it has seen: a round from scratch starts again at 0.
    assert weights == {
        ("scratch", 1): 2, ("scratch", 2): 2,
        ("continue", 1): 2, ("continue", 2): 4,
        ("continue_last", 1): 2, ("continue_last", 2): 4,
    }  # fmt: skip


def test_resuming_ends_as_the_uninterrupted_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("pool.rounds=3", "pool.query_size=1")
    import alseg.active.round_loop

    run_round = alseg.active.round_loop.run_round

    def stop_before_round_3(experiment, state):
        if state.finished_rounds == 2:
            raise KeyboardInterrupt
        return run_round(experiment, state)

    monkeypatch.setattr(alseg.active.round_loop, "run_round", stop_before_round_3)
    store = f"sqlite:///{tmp_path}/mlflow.db"  # MLflow keeps stores open by name: no relative one
    where = f"tracking.mlflow.uri={store}"
    cut = train("pool.rounds=3", "pool.query_size=1", where, tracking="mlflow")
    assert cut.exit_code == 130
    assert f"continue with: python -m alseg.train resume={cut.folder}" in cut.err
    assert RunState.load(cut.folder).finished_rounds == 2
    monkeypatch.setattr(alseg.active.round_loop, "run_round", run_round)
    resumed = train(resume=cut.folder, smoke=False)
    assert resumed.exit_code == 0, resumed.err
    assert not resumed.folder.exists()  # it continued in the old folder

    def without_hash(folder: Path) -> dict:
        return {k: v for k, v in state_of(folder).items() if k != "config_hash"}

    assert without_hash(cut.folder) == without_hash(whole.folder)

    parent, nested = stored_runs(store, "smoke")
    assert {r.info.status for r in (parent, *nested.values())} == {"FINISHED"}
    assert [step for step, _ in history(store, parent, "dice/test")] == [2, 3, 4]


def test_a_run_folder_is_never_overwritten(train: Train, tmp_path: Path) -> None:
    first = train()
    before = {p: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()}
    again = train(folder=first.folder)
    assert again.exit_code == 2
    assert "holds a run already; continue it with resume=" in again.err
    assert {p: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()} == before


def test_hidden_labels_are_not_read_until_they_are_acquired(train: Train, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(16, 16, 16)).astype(np.float32) for _ in range(10)]
    labels = [(image > 1).astype(np.uint8) for image in images]
    root = write_msd(tmp_path / "blobs", images, labels)
    plan = ("pool.initial=2", "pool.query_size=1", "pool.rounds=2")
    common = (
        f"data.task.root={root}", "data.patch_size=[16,16,16]", "strategy=variance",
        "data.preprocess=[]", *plan,
    )  # fmt: skip
    good = train(*common)
    assert good.exit_code == 0, good.err
    state = RunState.load(good.folder)
    task = read_msd(root)
    for case_id in state.pool.unlabelled:
        task.cases[case_id].label.write_bytes(b"not yours to read")
    blind = train(*common)
    assert blind.exit_code == 0, blind.err
    assert state_of(blind.folder)["queries"] == state_of(good.folder)["queries"]
    assert state_of(blind.folder)["history"] == state_of(good.folder)["history"]

    task.cases[state.pool.labelled[-1]].label.write_bytes(b"unreadable")
    stopped = train(*common, "cache_dir=runs/other_cache")
    assert stopped.exit_code == 2
    assert f"{state.pool.labelled[-1]}.nii.gz is not a readable NIfTI file" in stopped.err


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(conf_folder()) / group).glob("*.yaml"))


@pytest.mark.parametrize("model", choices("model"))
def test_every_model_runs(train: Train, model: str) -> None:
    run = train(f"model={model}", "pool.rounds=1", "steps_per_round=2")
    assert run.exit_code == 0, run.err


@pytest.mark.parametrize("trainer", ["auto", "debug"])
def test_every_trainer_without_a_gpu_runs(train: Train, trainer: str) -> None:
    run = train(f"trainer={trainer}", "pool.rounds=1", "steps_per_round=2")
    assert run.exit_code == 0, run.err


def test_every_training_runs(train: Train) -> None:
    assert choices("training") == ["adam", "one_cycle"]
    for training in choices("training"):
        run = train(f"training={training}", "pool.rounds=1", "steps_per_round=2")
        assert run.exit_code == 0, run.err


def test_every_yaml_composes() -> None:
    """The groups and choices of conf/ are known, and each composes with its defaults."""
    root = "++data.root=/somewhere"  # phantoms have none
    known = {
        "data": (
            [
                "auto",
                "auto_acdc",
                "auto_hippocampus",
                "auto_rare_lesions",
                "folder",
                "msd",
                "msd_hippocampus",
                "msd_liver",
                "nnunet",
                "phantom",
            ],
            [root, "++data.folder=/somewhere"],
        ),
        "experiment": (
            [
                "benchmark",
                "campaign",
                "demo",
                "hippocampus_cpu",
                "hippocampus_study",
                "nath2020_hippocampus",
                "nath2022_hippocampus",
                "nath2022_liver",
                "papers_study",
                "papers_study_ensemble",
                "papers_study_mi",
                "papers_study_proxy",
                "papers_study_repeats",
                "papers_study_semi_supervised",
                "papers_study_svgd",
                "rare_lesions_study",
                "regions_study",
                "smoke",
                "tutorial_liver",
            ],
            [root],
        ),
        "trainer": (["auto", "cpu", "ddp", "debug", "gpu"], []),
        "tracking": (["csv", "mlflow", "none", "tensorboard", "wandb"], []),
        "oracle": (["person", "simulated"], []),
        "pool": (["small", "tutorial"], []),
        "proxy": (["diverse", "highest"], []),
        "semi_supervised": (["none", "pseudo_label"], []),
        "uncertainty": (
            [
                "ensemble",
                "mc_dropout",
                "mc_dropout_2",
                "mc_dropout_5",
                "mc_dropout_adaptive",
                "mc_dropout_gated",
                "svgd",
                "svgd_training_loss",
                "tta",
            ],
            [],
        ),
        "data/splits": (
            ["annotated", "file", "fraction", "growing", "own"],
            ["++data.root=/somewhere"],
        ),
    }
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        for group, (expected, extra) in known.items():
            assert choices(group) == expected
            for name in expected:
                compose("config", overrides=[f"{group}={name}", *extra])


@pytest.mark.parametrize("data", ["msd", "nnunet"])
def test_an_experiment_is_called_after_the_folder_of_its_data(data: str) -> None:
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        for root in ("/there/is/no/Task07_Pancreas", "no/Task07_Pancreas/", "Task07_Pancreas/x/.."):
            config = compose("config", overrides=[f"data={data}", f"data.root={root}"])
            assert config.experiment_name == "Task07_Pancreas"
        compose("config", overrides=[f"data={data}"])  # help and completion need no folder


def test_the_demo_is_a_sweep_of_strategies_and_seeds() -> None:
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        demo = compose("config", ["experiment=demo"], return_hydra_config=True)
    assert demo.hydra.sweeper.params == {
        "strategy": "random,variance,boundary_entropy,full",
        "seed": "1,2",
    }


def test_the_tutorial_experiment_has_the_tutorials_numbers() -> None:
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        config = compose("config", overrides=["experiment=tutorial_liver", "data.root=/x"])
    assert (config.pool.initial, config.pool.query_size, config.pool.rounds) == (5, 5, 6)
    assert (config.steps_per_round, config.val_interval, config.val_interval_unit) == (
        2000, 5, "epochs",
    )  # fmt: skip
    assert config.uncertainty.n_passes == 10
    assert config.round_start == "continue"
    assert config.model.network.channels == [16, 32, 64, 128, 256]
    assert config.model.network.num_res_units == 2
    assert config.model.network.dropout == 0.2
    assert config.training.optimizer._target_ == "torch.optim.Adam"
    assert config.training.optimizer.lr == 1e-4
    assert config.training.loss._target_ == "monai.losses.DiceCELoss"
    assert config.data.patch_size == [96, 96, 96]
    assert config.data.inferer.roi_size == [160, 160, 160]
    assert config.data.batch_size == 1
    _, spacing, scale, _ = config.data.preprocess
    assert spacing.pixdim == [1.5, 1.5, 2.0]
    assert (scale.a_min, scale.a_max) == (-21, 189)
    crop = next(t for t in config.data.augment if "PosNeg" in t._target_)
    assert (crop.pos, crop.neg, crop.num_samples) == (1, 1, 4)


def test_the_real_hippocampus_runs(train: Train, hippocampus: Path) -> None:
    run = train(
        "experiment=hippocampus_cpu", f"data.root={hippocampus}", "pool.rounds=2",
        "steps_per_round=4", "val_interval=4", "uncertainty.n_passes=1", "data.num_workers=0",
        "pool.query_size=2", smoke=False,
    )  # fmt: skip
    assert run.exit_code == 0, run.err
    state = RunState.load(run.folder)
    assert [row["labelled"] for row in state.history] == [5, 7]
    assert len(state.pool.unlabelled) == 133
    assert state.timings[0]["preprocessed_volumes"] == 200
    assert re.search(r"preprocessed 200 volumes", run.out)


def test_a_run_warns_of_what_its_data_set_says(
    train: Callable[..., Outcome], tmp_path: Path
) -> None:
    root = bad_input.write_blobs(tmp_path / "blobs")
    bad_input.edit(numTraining=12)(root)
    for path in (bad_input.image(root), bad_input.label(root)):
        image = nibabel.load(path)
        image.header.set_xyzt_units("micron")
        image.set_sform(np.diag([1000.0, 1000, 1000, 1]), 1)
        nibabel.save(image, path)
    sizes = ("data.patch_size=[16,16,16]", "data.inferer.roi_size=[16,16,16]")
    run = train(f"data.task.root={root}", "strategy=random", "pictures=0", *sizes)
    assert run.exit_code == 0, run.err
    assert "warning: data set: dataset.json says numTraining 12, but 'training'" in run.out
    assert f"warning: data set: unit in 1 case ({bad_input.CASE}); of" in run.out
