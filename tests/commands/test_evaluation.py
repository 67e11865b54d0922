"""The evaluation of rounds from the command line: spaces, metrics, absent classes, bad settings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from alseg.run.state import RunState
from alseg.system.files import read_tensors
from alseg.tracking.record import metric_name
from alseg.training.fit import load_weights
from tests.conftest import Outcome, are_equal, write_msd
from tests.data.nnunet_with_ignore import write

Train = Callable[..., Outcome]

ALL = "evaluation.metrics=[dice,surface_dice,hd95]"
ORIENT = "{_target_:monai.transforms.Orientation,axcodes:RAS,labels:null}"
CLASSES = ("background", "large", "small")


def spacing(*edges: float) -> str:
    given = ",".join(map(str, edges))
    return f"{{_target_:monai.transforms.Spacing,pixdim:[{given}],mode:nearest}}"


def balls(shape: Sequence[int], edges: Sequence[float]) -> np.ndarray:
    """A large ball and a small one, in voxels of these edges in mm."""
    places = np.indices(shape) * np.reshape(edges, (3, 1, 1, 1))
    middle = (np.array(shape) - 1) * edges / 2
    label = np.zeros(shape, np.uint8)
    for value, shift, radius in ((1, (-3, 0, 2), 15.0), (2, (14, 4, -6), 9.0)):
        centre = (middle + shift).reshape(3, 1, 1, 1)
        label[((places - centre) ** 2).sum(axis=0) < radius**2] = value
    return label


def oblique(edges: Sequence[float], degrees: float) -> np.ndarray:
    """Axes that are turned in two planes."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(edges)
    affine[:3, 3] = (-31.0, 12.5, 7.0)
    return affine


def left_handed(edges: Sequence[float]) -> np.ndarray:
    """Axes to the left, to the front and up, of which the middle one is stored last."""
    affine = np.zeros((4, 4))
    affine[0, 0], affine[2, 1], affine[1, 2], affine[3, 3] = -edges[0], edges[1], edges[2], 1
    affine[:3, 3] = (40.0, -3.0, 11.0)
    return affine


FILES = {
    "anisotropic": ((44, 44, 20), (1.0, 1.0, 2.5), lambda edges: np.diag([*edges, 1.0])),
    "oblique": ((44, 44, 20), (1.0, 1.0, 2.5), lambda edges: oblique(edges, 17)),
    "left_handed": ((44, 20, 44), (1.0, 2.5, 1.0), left_handed),
}


def data_set(root: Path, kind: str = "anisotropic", n_cases: int = 6) -> Path:
    """Cases whose images are their labels."""
    shape, edges, affine_of = FILES[kind]
    label = balls(shape, edges)
    affines = [affine_of(edges)] * n_cases
    images = [label.astype(np.float32)] * n_cases
    return write_msd(root, images, [label] * n_cases, affines=affines, classes=CLASSES)


def run(train: Train, root: Path, *overrides: str, preprocess: str = ORIENT) -> Outcome:
    """One round of a perfect segmenter."""
    outcome = train(
        "data=msd",
        f"data.root={root}",
        f"data.preprocess=[{preprocess}]",
        "data.patch_size=[16,16,16]",
        "data.num_workers=0",
        "data.test_share=0.34",
        "data.augment=[{_target_:monai.transforms.RandSpatialCropd,keys:[image,label],"
        "roi_size:[8,8,8],random_size:false}]",
        "model.network._target_=tests.perfect_network.Perfect",
        "strategy=random",
        "pool.initial=2",
        "pool.query_size=1",
        "pool.rounds=1",
        "steps_per_round=1",
        "pictures=0",
        "training.learning_rate=1e-9",
        *overrides,
        smoke=False,
    )
    assert outcome.exit_code == 0, outcome.err
    return outcome


def last_row(outcome: Outcome) -> dict[str, float]:
    row: dict[str, float] = RunState.load(outcome.folder).history[-1]
    return row


def cases_of(outcome: Outcome) -> pd.DataFrame:
    return pd.read_csv(outcome.folder / "rounds/round_01/cases.csv").set_index("case_id")


def change_label(root: Path, case_id: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = root / "labelsTr" / f"{case_id}.nii.gz"
    image = nibabel.load(path)
    label = change(np.asarray(image.dataobj)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(label, image.affine), path)


@pytest.mark.parametrize("kind", FILES)
def test_a_perfect_segmenter_is_perfect_on_the_grid_and_nearly_so_in_the_files(
    train: Train, tmp_path: Path, kind: str
) -> None:
    root, preprocess = data_set(tmp_path / "set", kind), f"{ORIENT},{spacing(0.8, 0.8, 0.8)}"
    grid = last_row(run(train, root, ALL, "evaluation.space=grid", preprocess=preprocess))
    source = last_row(run(train, root, ALL, "evaluation.tolerance_mm=1.1", preprocess=preprocess))
    for part in ("val", "test"):
        assert grid[f"{part}_dice"] == grid[f"{part}_surface_dice"] == 1
        assert grid[f"{part}_hd95"] == grid[f"{part}_undefined_hd95"] == 0
        assert 0.99 <= source[f"{part}_dice"] <= 1
        assert source[f"{part}_surface_dice"] > 0.99
        assert source[f"{part}_hd95"] <= 1.0  # a voxel's edge
    assert source["test_dice"] == np.mean([source["test_dice_large"], source["test_dice_small"]])


def test_without_resampling_both_spaces_agree(train: Train, tmp_path: Path) -> None:
    root = data_set(tmp_path / "set", "left_handed")
    change_label(root, "case_00", lambda label: np.roll(label, 2, axis=0))
    rows = [
        cases_of(run(train, root, ALL, f"evaluation.space={space}")) for space in ("grid", "source")
    ]
    pd.testing.assert_frame_equal(*rows)


def test_a_crop_flatters_on_the_grid_and_not_in_the_files(train: Train, tmp_path: Path) -> None:
    root = data_set(tmp_path / "set")
    crop = "{_target_:monai.transforms.SpatialCrop,roi_start:[0,0,0],roi_end:[44,22,20]}"
    both = f"{ORIENT},{crop}"
    rows = {
        space: last_row(run(train, root, f"evaluation.space={space}", preprocess=both))
        for space in ("grid", "source")
    }
    label = balls(*FILES["anisotropic"][:2])
    assert rows["grid"]["test_dice"] == 1
    for value, name in enumerate(CLASSES[1:], start=1):
        whole, left = (label == value).sum(), (label[:, :22] == value).sum()
        dice = rows["source"][f"test_dice_{name}"]
        assert dice == pytest.approx(2 * left / (whole + left)) != pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("absent", ["nan", "zero"])
def test_false_positives_of_absent_classes_count_as_they_are_to(
    train: Train, tmp_path: Path, absent: str
) -> None:
    root = data_set(tmp_path / "set")
    for number in range(6):  # the images show the small ball, the labels lack it
        change_label(root, f"case_{number:02d}", lambda label: np.where(label == 2, 0, label))
    outcome = run(train, root, ALL, f"evaluation.absent={absent}")
    row, cases = last_row(outcome), cases_of(outcome)
    assert row["test_dice_large"] == 1
    if absent == "nan":
        assert cases["dice_small"].isna().all()
        assert row["test_dice"] == 1
        assert row["test_undefined_hd95"] == 0
        assert "small is in no test label" in outcome.out
    else:
        assert (cases["dice_small"] == 0).all()
        assert row["test_dice"] == row["test_surface_dice"] == 0.5
        diagonal = math.hypot(44, 44, 50)
        assert cases["hd95_small"].to_numpy() == pytest.approx(diagonal)
        assert row["test_undefined_hd95"] == (cases["part"] == "test").sum() == 2
        assert "2 HD95 of the last round do not exist" in outcome.out


def test_a_correct_absence_counts_and_a_missed_class_has_no_distance(
    train: Train, tmp_path: Path
) -> None:
    root = data_set(tmp_path / "set")
    for path in (root / "imagesTr").iterdir():
        image = nibabel.load(path)
        shown = np.where(np.asarray(image.dataobj) == 2, 0, np.asarray(image.dataobj))
        nibabel.save(nibabel.Nifti1Image(shown.astype(np.float32), image.affine), path)
    missed = run(train, root, ALL)
    assert last_row(missed)["test_dice_small"] == 0
    assert last_row(missed)["test_hd95_small"] == pytest.approx(math.hypot(44, 44, 50))
    assert last_row(missed)["test_undefined_hd95"] == 2
    for number in range(6):
        change_label(root, f"case_{number:02d}", lambda label: np.where(label == 2, 0, label))
    right = last_row(run(train, root, ALL, "evaluation.absent=zero"))
    assert right["test_dice"] == right["test_surface_dice"] == 1
    assert right["test_hd95"] == right["test_undefined_hd95"] == 0


def test_a_class_that_nobody_annotated_is_not_an_absent_one(train: Train, tmp_path: Path) -> None:
    root = data_set(tmp_path / "set")
    path = root / "dataset.json"
    content = json.loads(path.read_text())
    content["annotated_classes"] = {f"case_{n:02d}": ["large"] for n in range(0, 6, 2)}
    path.write_text(json.dumps(content))
    for case_id in content["annotated_classes"]:
        change_label(root, case_id, lambda label: np.where(label == 2, 0, label))
    cases = cases_of(run(train, root, ALL, "evaluation.absent=zero"))
    for case_id, row in cases.iterrows():
        lacks = case_id in content["annotated_classes"]
        assert row["dice_large"] == 1
        assert math.isnan(row["dice_small"]) == math.isnan(row["hd95_small"]) == lacks
    assert cases["dice_small"].isna().any()
    assert cases["dice_small"].notna().any()


def test_ignored_voxels_are_left_out_in_the_files(train: Train, tmp_path: Path) -> None:
    root = write(tmp_path / "Dataset001_Balls")
    outcome = train(
        f"data.task={{_target_:alseg.data.formats.nnunet.read_nnunet,root:'{root}'}}",
        "data.spacing_mm=[1.6,1.6,1.6]",
        "data.crop_ratios=[0,1,2]",
        "evaluation.absent=zero",
        ALL,
        "pool.rounds=1",
        "data.patch_size=[16,16,16]",
        "model=unet_tiny",
        smoke=True,
    )
    assert outcome.exit_code == 0, outcome.err
    cases = cases_of(outcome)
    assert cases.filter(regex="^(dice|surface_dice|hd95)").notna().all(axis=None)


MIXTURES = {
    "cross": (
        "validation=cross", "validation.folds=2", "data/splits=annotated", "pool.initial=4",
    ),
    "growing": ("data/splits=growing", "pool.initial=4"),
    "regions": ("pool.unit=patch", "pool.patch_voxels=[12,12,8]", "pool.initial=4"),
    "semi-supervised": ("semi_supervised=pseudo_label", "semi_supervised.step_share=0.5"),
    "repeat": ("pool.repeat_uncertain=true",),
    "ensemble": ("uncertainty=ensemble", "strategy=bald"),
    "committee": ("uncertainty=svgd", "strategy=bald"),
    "networks": ("evaluation.networks=2",),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXTURES)
def test_all_metrics_go_with_all_ways_of_training(train: Train, name: str) -> None:
    outcome = train(
        *MIXTURES[name], ALL, "data.spacing_mm=[14,14,14]", "evaluation.absent=zero", "pictures=0"
    )
    assert outcome.exit_code == 0, outcome.err
    history = pd.DataFrame(RunState.load(outcome.folder).history)
    part = "val" if name in ("cross", "growing") else "test"
    columns = [f"{part}_{metric}" for metric in ("dice", "surface_dice", "hd95")]
    assert history[columns].notna().all(axis=None)
    assert history[columns[:2]].ge(0).all(axis=None)
    cases = pd.read_csv(outcome.folder / "rounds/round_02/cases.csv")
    judged = cases[cases["part"] == part]
    for metric in ("dice", "surface_dice", "hd95"):
        by_class = judged[[f"{metric}_liver", f"{metric}_tumour"]].mean()
        assert history[f"{part}_{metric}"].iloc[-1] == pytest.approx(by_class.mean())
    assert history[f"{part}_undefined_hd95"].iloc[-1] == judged["undefined_hd95"].sum()
    assert "HD95 (mm), tumour" in outcome.out


def test_weights_are_chosen_by_dice_on_the_grid_whatever_evaluates(train: Train) -> None:
    resampled = ("data.spacing_mm=[14,14,14]", "pictures=0")
    source = train(*resampled, ALL)
    grid = train(*resampled, "evaluation.space=grid")
    states = [RunState.load(outcome.folder) for outcome in (source, grid)]
    assert states[0].pool == states[1].pool
    assert states[0].history[0]["test_dice"] != states[1].history[0]["test_dice"]
    curves = [
        pd.read_csv(o.folder / "rounds/round_01/training_curves.csv")["dice/val"].dropna()
        for o in (source, grid)
    ]
    # two validations of the training: what the round reports after it is not of this curve
    assert len(curves[0]) == 2
    assert curves[0].tolist() == curves[1].tolist()


def test_the_metrics_have_names_of_their_own_in_tracking() -> None:
    assert metric_name("test_surface_dice") == "surface_dice/test"
    assert metric_name("val_hd95_liver") == "hd95/val/liver"
    assert metric_name("test_undefined_hd95") == "undefined_hd95/test"
    assert metric_name("test_dice_hd95") == "dice/test/hd95"


def test_a_comparison_has_tables_of_all_metrics_and_takes_one_evaluation_only(
    train: Train, tmp_path: Path, call_entry_point: Callable[..., tuple[int, str, str]]
) -> None:
    from alseg.compare import main

    settings = ("strategy=random", ALL, "pictures=0")
    runs = tmp_path / "runs"
    one = train(*settings, folder=runs / "one", tracking="csv")
    output = tmp_path / "page"
    exit_code, out, err = call_entry_point(main, str(runs), "--output", str(output))
    assert exit_code == 0, out + err
    history = RunState.load(one.folder).history
    for name, column in (("surface_dice", "surface_dice"), ("hd95_1", "hd95_liver")):
        (path,) = output.rglob(f"{name}.csv")
        expected = [row[f"test_{column}"] for row in history]
        assert pd.read_csv(path)["mean"].tolist() == pytest.approx(expected)
    page = (output / "index.html").read_text()
    assert "Mean test surface Dice" in page
    assert "Test HD95 (mm) of tumour" in page
    tracked = pd.read_csv(one.folder / "csv/metrics.csv")
    assert tracked["hd95/test"].dropna().tolist() == [row["test_hd95"] for row in history]
    train(*settings, "seed=2", "evaluation.space=grid", folder=runs / "two")
    exit_code, _, err = call_entry_point(main, str(runs), "--output", str(output))
    assert exit_code == 2
    assert "evaluation.space source" in err.replace("\n", " ")


def test_a_run_is_resumed_with_the_same_evaluation_only(train: Train) -> None:
    folder = train("strategy=random", "pictures=0", "evaluation.absent=nan").folder
    again = train("evaluation.absent=nan", smoke=False, resume=folder)
    assert again.exit_code == 0, again.err
    refused = train("evaluation.space=grid", smoke=False, resume=folder)
    assert refused.exit_code == 2
    assert "evaluation.space: source -> grid" in refused.err


def test_the_mean_prediction_of_networks_changes_the_dice_and_nothing_else(train: Train) -> None:
    settings = ("strategy=variance", "pictures=0", "pool.rounds=2", "round_start=continue")
    one = train(*settings)
    two = train(*settings, "evaluation.networks=2")
    assert two.exit_code == 0, two.err
    ours, theirs = (RunState.load(outcome.folder) for outcome in (one, two))
    assert ours.pool == theirs.pool  # scored by the round's own network, as without the second
    for mine, other in zip(ours.history, theirs.history, strict=True):
        assert mine["test_dice"] != other["test_dice"]
        assert mine["foreground_voxels"] == other["foreground_voxels"]
    for number in (1, 2):  # the last round evaluates them as well
        best = f"rounds/round_{number:02d}/best"
        assert (two.folder / f"{best}_member_2.ckpt").is_file()
        weights = [
            read_tensors(folder / f"{name}.ckpt")["state_dict"]
            for folder, name in (
                (one.folder, best), (two.folder, best), (two.folder, f"{best}_member_2"),
            )
        ]  # fmt: skip
        assert are_equal(weights[0], weights[1])
        assert not are_equal(weights[1], weights[2])


def test_each_network_continues_from_its_own_weights(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def spy(network: torch.nn.Module, checkpoint: Path) -> None:
        loaded.append("/".join(checkpoint.parts[-2:]))
        load_weights(network, checkpoint)

    monkeypatch.setattr("alseg.active.round_networks.load_weights", spy)
    settings = ("strategy=random", "pictures=0", "pool.rounds=2", "evaluation.networks=2")
    for start, name in (("continue", "best"), ("continue_last", "last"), ("scratch", "")):
        loaded.clear()
        outcome = train(*settings, f"round_start={start}")
        assert outcome.exit_code == 0, outcome.err
        expected = [f"round_01/{name}.ckpt", f"round_01/{name}_member_2.ckpt"]
        assert loaded == (expected if name else [])


def test_runs_of_one_and_of_several_networks_are_not_compared(
    train: Train, tmp_path: Path, call_entry_point: Callable[..., tuple[int, str, str]]
) -> None:
    from alseg.compare import main

    settings = ("strategy=random", "pictures=0")
    runs = tmp_path / "runs"
    one = train(*settings, folder=runs / "one")
    train(*settings, "seed=2", folder=runs / "two")
    config = one.folder / "config.yaml"
    text = config.read_text()
    assert "  networks: 1\n" in text
    config.write_text(text.replace("  networks: 1\n", ""))  # as earlier versions left it
    compare = (str(runs), "--output", str(tmp_path / "page"))
    exit_code, out, err = call_entry_point(main, *compare)
    assert exit_code == 0, out + err
    train(*settings, "seed=3", "evaluation.networks=2", folder=runs / "three")
    exit_code, _, err = call_entry_point(main, *compare)
    assert exit_code == 2
    assert "evaluation.networks" in err.replace("\n", " ")


def test_a_sheared_file_has_no_surface_distances(train: Train, tmp_path: Path) -> None:
    root = data_set(tmp_path / "set")
    sheared = np.diag([1.0, 1.0, 2.5, 1.0])
    sheared[1, 2] = 0.8
    for path in root.glob("*Tr/*.nii.gz"):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), sheared), path)
    assert last_row(run(train, root))["test_dice"] == 1
    refused = train("data=msd", f"data.root={root}", ALL, smoke=False)
    assert refused.exit_code == 2
    assert "are not perpendicular" in refused.err
    assert "case_0" in refused.err
