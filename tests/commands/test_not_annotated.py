"""Data sets that nobody has annotated in full, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from alseg.core.errors import DataError
from alseg.core.units import region_from_text
from alseg.data.cache import VolumeCache
from alseg.data.formats.nnunet import read_nnunet
from alseg.engine.data_report import survey
from alseg.oracles.annotated_voxels import AnnotatedVoxels
from alseg.oracles.costs import cost_named
from alseg.strategies.aggregations import hidden_dice_error
from alseg.strategies.measures import hidden_class_voxels, prediction_error
from alseg.strategies.statistics import VoxelStatistics
from alseg.training.evaluation import Evaluation
from alseg.training.metrics import Calibration, CaseMetrics
from tests.conftest import are_equal
from tests.data.nnunet_with_ignore import IGNORE, SHAPE, write

Train = Callable[..., Any]
SETTINGS = (
    "data=nnunet",
    "model=unet_tiny",
    "uncertainty=mc_dropout_2",
    "data.preprocess=[]",
    "data.patch_size=[16,16,16]",
    "data.batch_size=2",
    "data.num_workers=0",
    "data.inferer.roi_size=[16,16,16]",
    "data.validation_share=0.25",
    "data.test_share=0.25",
    "pool.initial=2",
    "pool.query_size=1",
    "pool.rounds=2",
    "steps_per_round=3",
    "val_interval=3",
    "pictures=1",
    "cost=foreground_voxels",
)


CLASS_COLUMNS = ["dice_large", "dice_small"]


def run(train: Train, root: Path, *overrides: str) -> Any:
    folders = (f"data.root={root}", f"output_dir={root.parent / 'runs'}")
    return train(*SETTINGS, *folders, *overrides, smoke=False)


def weights(outcome: Any) -> dict[str, torch.Tensor]:
    assert outcome.exit_code == 0, outcome.err
    path = outcome.folder / "rounds/round_02/last.ckpt"
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def labels_of(root: Path) -> dict[str, np.ndarray]:
    return {
        path.name.removesuffix(".nii.gz"): np.asarray(nibabel.load(path).dataobj)
        for path in sorted(root.glob("labelsTr/*"))
    }


def save_label(root: Path, case_id: str, label: np.ndarray) -> Path:
    path = root / f"labelsTr/{case_id}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(label.astype(np.uint8), np.eye(4)), path)
    return path


def cache_of(root: Path) -> VolumeCache:
    return VolumeCache(read_nnunet(root), [], "none", root.parent / "cache")


# voxels that nobody annotated: nnU-Net's ignore label


def test_an_nnunet_data_set_with_an_ignore_label_trains(train: Train, tmp_path: Path) -> None:
    root = write(tmp_path / "Dataset001_Balls")
    outcome = run(train, root)
    assert outcome.exit_code == 0, outcome.err
    queries = pd.read_csv(outcome.folder / "queries.csv").set_index("case_id")
    labels = labels_of(root)
    for case_id, cost in queries["cost"].items():
        assert cost == np.isin(labels[str(case_id)], (1, 2)).sum()
    metrics = pd.read_csv(outcome.folder / "metrics.csv")
    assert metrics["foreground_voxels"][0] == queries[queries["round"] == 0]["cost"].sum()
    assert metrics["test_dice"].between(0, 1).all()
    calibration = pd.read_csv(outcome.folder / "rounds/round_01/calibration.csv")
    cases = pd.read_csv(outcome.folder / "rounds/round_01/cases.csv")
    tested = cases[cases["part"] == "test"]["case_id"]
    assert calibration["n_voxels"].sum() == sum((labels[i] != IGNORE).sum() for i in tested)


@pytest.mark.parametrize(
    "settings",
    [
        ("strategy=foreground_aware_random",),
        ("strategy=oracle_dice",),
        ("uncertainty=svgd",),
        ("semi_supervised=pseudo_label",),
    ],
)
def test_all_that_reads_labels_takes_ignored_voxels(
    settings: tuple[str, ...], train: Train, tmp_path: Path
) -> None:
    outcome = run(train, write(tmp_path / "Dataset001_Balls"), *settings)
    assert outcome.exit_code == 0, outcome.err
    assert len(pd.read_csv(outcome.folder / "queries.csv")) == 3


def test_an_ignore_label_that_marks_nothing_changes_no_bit(train: Train, tmp_path: Path) -> None:
    declared, plain = (
        weights(run(train, write(tmp_path / name / "Dataset001_Balls", ignored=False, declared=d)))
        for name, d in (("declared", True), ("plain", False))
    )
    assert are_equal(declared, plain)
    marked = run(train, write(tmp_path / "marked" / "Dataset001_Balls"))
    assert not are_equal(plain, weights(marked))


def test_a_loss_that_needs_whole_volumes_is_refused(train: Train, tmp_path: Path) -> None:
    loss = "training.loss={_target_:monai.losses.HausdorffDTLoss,to_onehot_y:true,softmax:true}"
    outcome = run(train, write(tmp_path / "Dataset001_Balls"), loss)
    assert outcome.exit_code == 2
    assert "training.loss depends on where voxels lie" in " ".join(outcome.err.split())


def test_the_ignore_label_has_the_highest_value_as_in_nnunet(tmp_path: Path) -> None:
    root = write(tmp_path / "Dataset001_Balls", n_cases=1)
    task = read_nnunet(root)
    assert (task.classes, task.ignore_value) == (("background", "large", "small"), IGNORE)
    content = json.loads((root / "dataset.json").read_text())
    content["labels"] = {"background": 0, "ignore": 2, "large": 1, "small": 3}
    (root / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="it must be the highest value"):
        read_nnunet(root)


def test_a_value_behind_the_ignore_label_is_told(tmp_path: Path) -> None:
    root = write(tmp_path / "Dataset001_Balls", n_cases=1)
    path = save_label(root, "case_000", np.full(SHAPE, 4))
    with pytest.raises(DataError, match=r"allowed are 0 to 2 .* and 3 \(ignored\)"):
        cache_of(root).label("case_000", path)


def test_validate_reports_the_share_of_ignored_voxels(tmp_path: Path) -> None:
    root = write(tmp_path / "Dataset001_Balls", n_cases=3)
    save_label(root, "case_001", np.full(SHAPE, IGNORE))
    report = survey(cache_of(root), 1)
    (note,) = (f for f in report.data_set if f.kind == "ignored voxels")
    assert note.level == "note"
    assert note.message.startswith("2 of 3 labels ignore voxels, 50.00% to 100.00% of theirs")
    kinds = [f.kind for f in report.cases["case_001"]]
    assert "nothing annotated" in kinds
    assert "empty label" not in kinds


def test_costs_leave_ignored_voxels_out(tmp_path: Path) -> None:
    label = np.zeros((4, 5, 6), np.uint8)
    label[1, 1, 1:3] = 1
    label[:, :, 4:] = 3
    path = tmp_path / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), path)
    expected = {"volume": 1, "voxels": 80, "foreground_voxels": 2, "slices": 2}
    assert {name: cost_named(name)(AnnotatedVoxels.read(path, 3)) for name in expected} == expected


def test_metrics_are_those_of_the_annotated_part() -> None:
    noise = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 6, 5, 4, generator=noise)
    label = torch.randint(3, (1, 1, 6, 5, 4), generator=noise, dtype=torch.int8)
    box = (..., slice(1, 4), slice(0, 5), slice(2, 4))
    partial_label = torch.full_like(label, -1)
    partial_label[box] = label[box]
    prediction = logits.argmax(dim=1, keepdim=True)
    dice, calibration = CaseMetrics(["a", "b"]), Calibration()
    dice.update("part", prediction[box], label[box])
    dice.update("whole", prediction, partial_label)
    calibration.update("part", logits[box], label[box])
    calibration.update("whole", logits, partial_label)
    assert dice.rows["part"] == dice.rows["whole"]
    assert torch.allclose(calibration.sums["part"], calibration.sums["whole"])


@pytest.mark.parametrize("absent", ["nan", "zero"])
def test_a_case_without_an_annotated_voxel_has_no_metric(absent: str) -> None:
    evaluation = Evaluation(metrics=["dice", "surface_dice", "hd95"], absent=absent)
    metrics = CaseMetrics(["a", "b"], evaluation)
    prediction = torch.ones(1, 1, 4, 4, 4, dtype=torch.int8)
    metrics.update("nothing", prediction, torch.full_like(prediction, -1), torch.eye(4))
    assert np.isnan(metrics.rows["nothing"][:-1]).all()
    metrics.update("whole", prediction, prediction, torch.eye(4))
    assert metrics.by_class() == pytest.approx(
        {"a": 1, "b": 1 if absent == "zero" else np.nan}, nan_ok=True
    )
    assert metrics.n_undefined_hd95 == 0


def test_hidden_label_measures_of_ignored_voxels_by_hand() -> None:
    statistics = VoxelStatistics()
    probabilities = torch.zeros(3, 1, 1, 4)
    for place, predicted in enumerate((1, 1, 2, 2)):
        probabilities[predicted, 0, 0, place] = 1
    statistics.update(probabilities)
    statistics.attach_hidden_label(torch.tensor([[[1, -1, 0, -1]]], dtype=torch.int8))
    assert prediction_error(statistics).tolist() == [[[0, 0, 1, 0]]]
    assert hidden_class_voxels(statistics).tolist() == [1, 0]
    assert hidden_dice_error(prediction_error(statistics), statistics) == 0.5  # of 0 and 1


# a simulation asks for nothing that it cannot answer


def asked_of(outcome: Any, root: Path) -> pd.DataFrame:
    """queries.csv of a run of regions, with the number of voxels that are known in each of them."""
    assert outcome.exit_code == 0, outcome.err
    asked = pd.read_csv(outcome.folder / "queries.csv", keep_default_na=False)
    known = {case_id: label != IGNORE for case_id, label in labels_of(root).items()}
    boxes = [tuple(slice(*edges) for edges in region_from_text(r)) for r in asked["region"]]
    pairs = list(zip(asked["case_id"], boxes, strict=True))
    asked["known"] = [int(known[case_id][box].sum()) for case_id, box in pairs]
    asked["known_in_case"] = [int(known[case_id].sum()) for case_id in asked["case_id"]]
    return asked


@pytest.mark.parametrize("strategy", ["random", "clasp_pe", "core_set"])
def test_no_region_without_an_annotated_voxel_is_asked_for(
    strategy: str, train: Train, tmp_path: Path
) -> None:
    root = write(tmp_path / "Dataset001_Balls")
    unit = ("pool.unit=patch", "pool.patch_voxels=[20,18,4]", "pool.query_size=99")
    rows = asked_of(run(train, root, *unit, "cost=volume", f"strategy={strategy}"), root)
    assert (rows["known"] > 0).all()
    assert (rows["voxels"] == rows["known"]).all()
    assert rows["cost"].to_numpy() == pytest.approx(rows["known"] / rows["known_in_case"])
    full = rows["known"] == 20 * 18 * 4
    assert (~full).any()  # partly ignored regions are asked for, and cost what is left of them
    assert rows.groupby("case_id")["cost"].sum().max() <= 1 + 1e-9


def test_slices_are_asked_for_until_all_that_is_annotated_is_known(
    train: Train, tmp_path: Path
) -> None:
    root = write(tmp_path / "Dataset001_Balls")
    unit = ("pool.unit=slice", "pool.slice_axis=2", "pool.query_size=99")
    effort = ("cost=effort", "effort.minutes_per_cm=0", "effort.minutes_per_case=0")
    outcome = run(train, root, *unit, *effort, "strategy=foreground_aware_random")
    rows = asked_of(outcome, root)
    counts = rows.groupby("case_id").size()
    is_whole = {i: not (label == IGNORE).any() for i, label in labels_of(root).items()}
    assert counts.to_dict() == {i: 16 if is_whole[str(i)] else 8 for i in counts.index}
    assert rows["cost"].sum() == pytest.approx(0.2 * len(rows))
    shares = (
        rows["known"].groupby(rows["case_id"]).sum()
        / rows.groupby("case_id")["known_in_case"].first()
    )
    assert shares.tolist() == [1.0] * len(counts)


@pytest.mark.parametrize("unit", ["volume", "slice"])
def test_a_case_whose_label_ignores_everything_is_left_out_of_the_pool(
    unit: str, train: Train, tmp_path: Path
) -> None:
    root = write(tmp_path / "Dataset001_Balls", ignored=False)
    before = run(train, root, "strategy=full", "pool.rounds=1")
    pool = pd.read_csv(before.folder / "queries.csv")["case_id"].tolist()
    save_label(root, pool[1], np.full(SHAPE, IGNORE))
    size = f"pool.query_size={99 if unit == 'slice' else 2}"
    outcome = run(train, root, f"pool.unit={unit}", size, "strategy=random", "pool.initial=1")
    assert outcome.exit_code == 0, outcome.err
    asked = pd.read_csv(outcome.folder / "queries.csv")["case_id"]
    assert sorted(set(asked)) == sorted({*pool} - {pool[1]})
    assert (
        f"1 label ignores all of its voxels, and its case is left out of the pool of the "
        f"simulation: {pool[1]}" in outcome.out
    )
    for case_id in pool:
        save_label(root, case_id, np.full(SHAPE, IGNORE))
    refused = run(train, root, f"pool.unit={unit}", "strategy=random")
    assert refused.exit_code == 2
    assert f"the labels of all {len(pool)} training cases ignore all of their voxels" in refused.err


@pytest.mark.parametrize("part", ["val", "test"])
def test_cases_that_ignore_everything_judge_nothing(
    part: str, train: Train, tmp_path: Path
) -> None:
    settings = ("strategy=random", "pool.rounds=1", "evaluation.absent=zero")
    root = write(tmp_path / "Dataset001_Balls", ignored=False)

    def judged() -> tuple[Any, pd.DataFrame, dict[str, float]]:
        outcome = run(train, root, *settings)
        assert outcome.exit_code == 0, outcome.err
        cases = pd.read_csv(outcome.folder / "rounds/round_01/cases.csv")
        (row,) = pd.read_csv(outcome.folder / "metrics.csv").to_dict("records")
        return outcome, cases[cases["part"] == part].set_index("case_id"), row

    _, before, _ = judged()
    gone, *others = before.index
    save_label(root, gone, np.full(SHAPE, IGNORE))
    outcome, cases, row = judged()
    told = "1 label ignores all of its voxels, and its case is left out of validation and test"
    assert outcome.out.replace("\n", " ").count(f"{told}: {gone}") == 1
    assert cases.index.tolist() == others
    assert row[f"{part}_dice"] == pytest.approx(before.loc[others, CLASS_COLUMNS].mean().mean())
    for case_id in others:
        save_label(root, case_id, np.full(SHAPE, IGNORE))
    refused = run(train, root, *settings)
    assert refused.exit_code == 2
    name = {"val": "validation", "test": "test"}[part]
    assert f"the labels of all 2 {name} cases ignore all of their voxels" in refused.err


def test_regions_of_a_data_set_whose_ignore_label_marks_nothing_are_the_same(
    train: Train, tmp_path: Path
) -> None:
    unit = ("pool.unit=patch", "pool.patch_voxels=8", "cost=volume", "strategy=power_bald")
    runs = {
        name: run(
            train, write(tmp_path / name / "Dataset001_Balls", ignored=False, declared=d), *unit
        )
        for name, d in (("declared", True), ("plain", False))
    }
    assert are_equal(*map(weights, runs.values()))
    one, two = (r.folder / "queries.csv" for r in runs.values())
    assert one.read_text() == two.read_text()


# classes that nobody annotated in some cases


def without(root: Path, lists: Any, *, hide: bool = True) -> Path:
    """Let cases lack all classes but some, in dataset.json and in the labels."""
    content = json.loads((root / "dataset.json").read_text())
    content["annotated_classes"] = lists
    (root / "dataset.json").write_text(json.dumps(content))
    labels = labels_of(root)
    for case_id, names in lists.items() if hide else ():
        hidden = [value for value, name in ((1, "large"), (2, "small")) if name not in names]
        label = labels[case_id]
        save_label(root, case_id, np.where(np.isin(label, hidden), 0, label))
    return root


EVEN = {f"case_{number:03d}": ["large"] for number in range(0, 8, 2)}


def test_classes_that_a_case_lacks_are_left_out_of_loss_and_metric(
    train: Train, tmp_path: Path
) -> None:
    root = without(write(tmp_path / "Dataset001_Balls", ignored=False), EVEN)
    listed = run(train, root)
    learnt = weights(listed)
    cases = pd.read_csv(listed.folder / "rounds/round_01/cases.csv").set_index("case_id")
    for case_id, row in cases.iterrows():
        assert np.isnan(row["dice_small"]) == (case_id in EVEN)
        assert 0 <= row["dice_large"] <= 1
    # without the list the small ball of these cases is learnt as background
    unlisted = run(train, without(root, {}))
    assert not are_equal(learnt, weights(unlisted))


def test_a_list_of_all_classes_changes_no_bit(train: Train, tmp_path: Path) -> None:
    root = write(tmp_path / "Dataset001_Balls", ignored=False)
    before = weights(run(train, root))
    without(root, {"case_000": ["small", "large"]})
    assert read_nnunet(root).lacks_classes is False
    assert are_equal(before, weights(run(train, root)))


@pytest.mark.parametrize(
    "settings", [("uncertainty=svgd",), ("semi_supervised=pseudo_label",), ("training=adam",)]
)
def test_every_kind_of_training_takes_lists_of_classes(
    settings: tuple[str, ...], train: Train, tmp_path: Path
) -> None:
    root = without(write(tmp_path / "Dataset001_Balls"), EVEN)  # with ignored voxels as well
    assert weights(run(train, root, *settings))


def test_a_loss_without_softmax_is_refused(train: Train, tmp_path: Path) -> None:
    root = without(write(tmp_path / "Dataset001_Balls", ignored=False), EVEN)
    outcome = run(train, root, "training.loss._target_=monai.losses.DiceFocalLoss")
    assert outcome.exit_code == 2
    assert "training.loss is not of softmax probabilities" in " ".join(outcome.err.split())


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"nobody": ["large"]}, "names the case 'nobody', which the data set does not have"),
        ({"case_000": []}, "must name at least one class of case_000"),
        ({"case_000": "large"}, "must name at least one class of case_000"),
        ({"case_000": ["huge"]}, "the class 'huge'; there are large, small"),
        ({"case_000": ["background"]}, "the class 'background'; there are large, small"),
        (["case_000"], "must give a list of class names"),
    ],
)
def test_a_wrong_list_of_annotated_classes_is_told(
    lists: Any, message: str, tmp_path: Path
) -> None:
    root = without(write(tmp_path / "Dataset001_Balls", n_cases=1), lists, hide=False)
    with pytest.raises(DataError, match=message):
        read_nnunet(root)


def test_a_label_with_a_class_that_it_should_lack_is_told(tmp_path: Path) -> None:
    root = write(tmp_path / "Dataset001_Balls", n_cases=1, ignored=False)
    path = root / "labelsTr/case_000.nii.gz"
    cache_of(root).label("case_000", path)  # is in the cache now
    without(root, {"case_000": ["large"]}, hide=False)
    with pytest.raises(DataError, match=r"holds the class small, but dataset\.json says"):
        cache_of(root).label("case_000", path)


def test_validate_reports_classes_that_cases_lack(tmp_path: Path) -> None:
    root = write(tmp_path / "Dataset001_Balls", n_cases=3, ignored=False)
    report = survey(cache_of(without(root, {"case_000": ["large"]})), 1)
    (note,) = (f for f in report.data_set if f.kind == "class not annotated")
    assert note.message.startswith("small was not annotated in 1 of 3 cases")
    assert "class missing" not in {f.kind for f in report.cases["case_000"]}
