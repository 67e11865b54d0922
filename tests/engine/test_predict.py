"""``python -m alseg.predict`` through its front door, with a network that is really trained."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from alseg.config.composition import composed
from alseg.engine.bundle import readme
from alseg.engine.runs import train
from alseg.engine.trained_run import load_trained
from alseg.system.files import read_json, write_json
from tests.conftest import Outcome, write_msd
from tests.run_folders import change_cell
from tests.smoke_runs import run_smoke

ROOT = Path(__file__).parents[2]
# no resampling: on the grid of the files, Dice and maps are those of the run
EXACT = (
    "data.preprocess=[{_target_:monai.transforms.Orientation,axcodes:RAS,labels:null},"
    "{_target_:monai.transforms.ScaleIntensityRange,a_min:-20,a_max:180,b_min:0,b_max:1}]"
)
Predict = Callable[..., Outcome]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """The folder of a run of two rounds."""
    folder = tmp_path_factory.mktemp("run")
    settings = ("steps_per_round=30", "val_interval=15", "data.num_workers=0")
    run_smoke(folder, shared, "strategy=variance", EXACT, *settings)
    return folder


@pytest.fixture(scope="module")
def data(run: Path, shared: Path) -> Path:
    """The data set of the run."""
    (dataset,) = shared.rglob("dataset.json")
    return dataset.parent


@pytest.fixture
def scans(data: Path, tmp_path: Path) -> Path:
    """Four of its images, in a folder of their own."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for index in range(4):
        shutil.copy(data / "imagesTr" / f"phantom_{index:03d}.nii.gz", folder)
    return folder


@pytest.fixture
def predict(
    run: Path,
    scans: Path,
    tmp_path: Path,
    call_entry_point: Callable[..., tuple[int, str, str]],
) -> Predict:
    """Call ``python -m alseg.predict RUN images=scans output=out`` in this process."""
    from alseg.predict import main

    def call(*overrides: str, of: Path = run, images: Path = scans, output: str = "out") -> Outcome:
        folder = tmp_path / output
        arguments = [str(of), f"images={images}", f"output={folder}", "trainer=cpu", *overrides]
        return Outcome(*call_entry_point(main, *arguments), folder)

    return call


def table_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "cases.csv", dtype={"checksum": str}).set_index("case")


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


@pytest.mark.parametrize("resampled", [False, True])
def test_an_independent_script_finds_the_dice_of_the_run(
    predict: Predict, run: Path, data: Path, shared: Path, tmp_path: Path, resampled: bool
) -> None:
    if resampled:
        run = tmp_path / "resampled"
        settings = ("steps_per_round=30", "val_interval=15", "data.num_workers=0")
        run_smoke(run, shared, "strategy=random", "data.spacing_mm=[14,11,17]", *settings)
    cases = pd.read_csv(run / "rounds/round_02/cases.csv").query("part == 'test'")
    images = tmp_path / "held_out"
    images.mkdir()
    for case_id in cases["case_id"]:
        shutil.copy(data / "imagesTr" / f"{case_id}.nii.gz", images)
    done = predict("round=2", of=run, images=images)
    assert done.exit_code == 0, done.err
    script = [sys.executable, str(ROOT / "scripts" / "check_predictions.py"), str(done.folder)]
    cases_file = run / "rounds" / "round_02" / "cases.csv"
    check = subprocess.run(
        [*script, str(data / "labelsTr"), str(cases_file)],
        capture_output=True,
        text=True,
        check=True,
    )
    noted = pd.read_csv(run / "metrics.csv")["test_dice"][1]
    assert noted > 0
    assert f"source grid:   mean {noted:.5f}" in check.stdout
    assert "largest of a case and class 0.00000" in check.stdout


def test_a_segmentation_lies_on_its_scan_and_the_table_counts_it(
    predict: Predict, scans: Path
) -> None:
    done = predict()
    assert done.exit_code == 0, done.err
    assert "segmented 4 scans with the network of round" in done.out
    table = table_of(done.folder)
    assert list(table.index) == [f"phantom_{index:03d}" for index in range(4)]
    assert (table["status"] == "done").all()
    assert sorted(table["rank"]) == [1, 2, 3, 4]
    assert table["uncertainty"][table["rank"] == 1].item() == table["uncertainty"].max()
    for case_id, row in table.iterrows():
        source = nibabel.load(scans / f"{case_id}.nii.gz")
        found = nibabel.load(done.folder / row["file"])
        assert found.get_data_dtype() == np.uint8
        np.testing.assert_allclose(found.affine, source.affine)
        for value, name in enumerate(("liver", "tumour"), start=1):
            count = np.count_nonzero(np.asarray(found.dataobj) == value)
            assert row[f"voxels_{name}"] == count
            edge = np.prod(source.header.get_zooms()) / 1000
            assert row[f"ml_{name}"] == pytest.approx(count * edge, abs=1e-3)
    assert not (done.folder / "uncertainty").exists()


def test_the_uncertainty_map_is_what_the_round_scored_by(
    predict: Predict, run: Path, data: Path, tmp_path: Path
) -> None:
    scores = pd.read_csv(run / "rounds/round_01/scores.csv").set_index("case_id")["score"]
    images = tmp_path / "pool"
    images.mkdir()
    for case_id in scores.index[:2]:
        shutil.copy(data / "imagesTr" / f"{case_id}.nii.gz", images)
    done = predict("uncertainty_map=true", "measure=variance", "round=1", images=images)
    assert done.exit_code == 0, done.err
    for case_id, score in scores[:2].items():
        path = done.folder / "uncertainty" / f"{case_id}.nii.gz"
        np.testing.assert_allclose(
            nibabel.load(path).affine, nibabel.load(images / path.name).affine
        )
        assert voxels(path).mean(dtype=np.float64) == pytest.approx(score, rel=1e-4)
    plain = predict("round=1", images=images, output="plain")
    for case_id in scores.index[:2]:  # the map changes no segmentation
        name = f"{case_id}.nii.gz"
        np.testing.assert_array_equal(voxels(done.folder / name), voxels(plain.folder / name))


def test_the_same_command_keeps_what_is_there_and_does_the_rest(
    predict: Predict, scans: Path
) -> None:
    first = predict()
    table = table_of(first.folder)
    times = {path.name: path.stat().st_mtime_ns for path in first.folder.glob("*.nii.gz")}
    (first.folder / "phantom_001.nii.gz").unlink()
    os.replace(scans / "phantom_003.nii.gz", scans / "phantom_002.nii.gz")  # another scan
    again = predict()
    assert again.exit_code == 0, again.err
    assert "segmented 2 scans" in again.out
    assert "1 were there before" in again.out
    changed = {
        p.name for p in again.folder.glob("*.nii.gz") if p.stat().st_mtime_ns != times[p.name]
    }
    assert changed == {"phantom_001.nii.gz", "phantom_002.nii.gz"}
    after = table_of(again.folder)
    assert after["checksum"]["phantom_001"] == table["checksum"]["phantom_001"]
    assert after["checksum"]["phantom_002"] == table["checksum"]["phantom_003"]
    assert list(after.index) == list(table.index)  # the row of the case that has gone stays
    other = predict("round=1" if "round 2" in first.out else "round=2")
    assert "segmented 3 scans" in other.out


def test_a_kill_between_file_and_row_costs_one_case(
    predict: Predict, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alseg.engine.prediction_table import PredictionTable

    note, noted = PredictionTable.note, []

    def killed(table: PredictionTable, case_id: str, **values: object) -> None:
        noted.append(case_id)
        if len(noted) == 4:  # the second case's file is there, its row not yet
            os.kill(os.getpid(), signal.SIGINT)
        note(table, case_id, **values)

    with monkeypatch.context() as patch:
        patch.setattr(PredictionTable, "note", killed)
        cut = predict()
    assert cut.exit_code == 130
    assert "the same command continues with what is left, 3 scans" in cut.out
    assert table_of(cut.folder)["status"].tolist() == ["done", "writing"]
    assert (cut.folder / "phantom_001.nii.gz").is_file()
    again = predict()
    assert again.exit_code == 0, again.err
    assert "segmented 3 scans" in again.out
    whole = predict(output="whole")
    for path in whole.folder.glob("*.nii.gz"):
        assert path.read_bytes() == (again.folder / path.name).read_bytes()


def test_a_segmentation_that_somebody_has_corrected_is_not_overwritten(
    predict: Predict, scans: Path
) -> None:
    done = predict()
    corrected = done.folder / "phantom_000.nii.gz"
    image = nibabel.load(corrected)
    mended = np.asarray(image.dataobj).copy()
    mended[0, 0, 0] = 2
    nibabel.save(nibabel.Nifti1Image(mended, image.affine), corrected)
    before = corrected.read_bytes()
    other = predict("round=1" if "round 2" in done.out else "round=2")
    assert other.exit_code == 2
    assert corrected.read_bytes() == before
    assert (
        "is not what alseg.predict has left there"
        in table_of(done.folder)["message"]["phantom_000"]
    )
    assert "1 of 4 scans could not be segmented: phantom_000" in other.err
    again = predict()
    assert corrected.read_bytes() == before
    assert again.exit_code == 2


def test_bad_scans_are_reported_and_the_others_are_segmented(predict: Predict, scans: Path) -> None:
    image = nibabel.load(scans / "phantom_000.nii.gz")
    content = (scans / "phantom_001.nii.gz").read_bytes()
    (scans / "phantom_001.nii.gz").write_bytes(content[: len(content) // 2])
    holes = image.get_fdata(dtype=np.float32)
    holes[3, 3, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(holes, image.affine), scans / "phantom_002.nii.gz")
    two = np.stack([image.get_fdata(dtype=np.float32)] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(two, image.affine), scans / "phantom_003.nii.gz")
    (scans / "notes.nii.gz").write_bytes(gzip.compress(b"no image"))
    done = predict()
    assert done.exit_code == 2
    assert "Traceback" not in done.err
    assert done.err.strip().splitlines()[-1] == (
        "alseg: error: 4 of 5 scans could not be segmented: notes, phantom_001, phantom_002, "
        f"phantom_003; {done.folder / 'cases.csv'} says why"
    )
    table = table_of(done.folder)
    assert table["status"].to_dict() == {
        "notes": "refused", "phantom_000": "done", "phantom_001": "refused",
        "phantom_002": "refused", "phantom_003": "refused",
    }  # fmt: skip
    assert "NaN" in table["message"]["phantom_002"]
    assert "a 3D volume with 1 channel is needed" in table["message"]["phantom_003"]
    assert {path.name for path in done.folder.glob("*.nii.gz")} == {"phantom_000.nii.gz"}


def test_a_scan_that_does_not_fit_into_memory_is_left_out(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alseg.engine import predict as module

    whole, seen = module.plain_pass, []

    def too_large(*arguments: object) -> torch.Tensor:
        seen.append(arguments)
        if len(seen) == 2:
            torch.empty(2**60)  # what torch raises on a CPU
        return whole(*arguments)

    monkeypatch.setattr(module, "plain_pass", too_large)
    done = predict()
    assert done.exit_code == 2
    table = table_of(done.folder)
    assert table["status"].tolist() == ["done", "refused", "done", "done"]
    assert "phantom_001.nii.gz does not fit into memory" in table["message"]["phantom_001"]


def test_loader_processes_change_nothing_and_one_that_dies_is_reported(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alseg.data.cache import VolumeCache

    alone, together = predict(), predict("data.num_workers=2", output="together")
    assert together.exit_code == 0, together.err
    for path in alone.folder.glob("*.nii.gz"):
        assert path.read_bytes() == (together.folder / path.name).read_bytes()
    preprocess = VolumeCache.preprocess

    def dying(cache: VolumeCache, case: Any) -> Any:
        if case.id == "phantom_002":
            os.kill(os.getpid(), signal.SIGKILL)
        return preprocess(cache, case)

    monkeypatch.setattr(VolumeCache, "preprocess", dying)
    died = predict("data.num_workers=1", output="died")
    assert died.exit_code == 2
    assert "while it was reading phantom_002" in died.err


def test_a_network_of_two_channels_takes_a_file_a_channel_or_one_with_both(
    predict: Predict, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(16, 16, 16, 2)).astype(np.float32) for _ in range(10)]
    labels = [(image[..., 0] > 0.5).astype(np.uint8) for image in images]
    root = write_msd(tmp_path / "blobs", images, labels, channels=("T1", "T2"))
    run = tmp_path / "run_of_two"
    shared = tmp_path / "shared"
    tiny = "data.patch_size=[16,16,16]", "data.inferer.roi_size=[16,16,16]", "data.preprocess=[]"
    crop = "data.crop_ratios=[1,1]", "data.augment.1.num_classes=2"
    run_smoke(run, shared, f"data.task.root={root}", *tiny, *crop)
    scans = tmp_path / "two_channels"
    scans.mkdir()
    for channel in range(2):
        image = nibabel.Nifti1Image(images[0][..., channel], np.eye(4))
        nibabel.save(image, scans / f"apart_{channel:04d}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(images[0], np.eye(4)), scans / "together.nii")
    nibabel.save(nibabel.Nifti1Image(images[0][..., 0], np.eye(4)), scans / "half_0000.nii.gz")
    lacking = predict(of=run, images=scans, output="lacking")
    assert lacking.exit_code == 2
    message = table_of(lacking.folder)["message"]["half"]
    assert "the case half has half_0000; with 2 channels" in message
    (scans / "half_0000.nii.gz").rename(scans / "half.nii.gz")
    done = predict(of=run, images=scans)
    assert done.exit_code == 2
    table = table_of(done.folder)
    assert table["status"].to_dict() == {"apart": "done", "half": "refused", "together": "done"}
    assert "a 3D volume with 2 channels is needed" in table["message"]["half"]
    apart, together = (voxels(done.folder / f"{name}.nii.gz") for name in ("apart", "together"))
    np.testing.assert_array_equal(apart, together)


def test_channel_numbers_of_nnunet_are_no_part_of_the_case(predict: Predict, scans: Path) -> None:
    for path in list(scans.iterdir()):
        path.rename(scans / path.name.replace(".nii", "_0000.nii"))
    done = predict()
    assert done.exit_code == 0, done.err
    assert (done.folder / "phantom_000.nii.gz").is_file()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("round=9", "round is 9, and the run in"),
        ("round=best", "round is 'best'; it must be a whole number"),
        ("measure=doubt", "measure is 'doubt'; allowed are entropy"),
        ("measure=variance", "compares several passes; add uncertainty_map=true"),
        ("uncertainty_map=perhaps", "uncertainty_map is 'perhaps'; it must be true or false"),
        ("images=nowhere", "images is nowhere, which is not a folder"),
        ("trainer.devices=2", "prediction takes one device"),
        ("trainer=gpu", "trainer.accelerator is gpu, but torch"),
        ("trainer=tpu", "trainer is 'tpu'; did you mean gpu?"),
        ("rund=1", "there is no setting rund; did you mean round?"),
    ],
)
def test_settings_that_cannot_be_used_are_reported(
    predict: Predict, setting: str, message: str
) -> None:
    if setting == "trainer=gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    check(predict(setting), message)


def check(done: Outcome, message: str) -> None:
    assert done.exit_code == 2
    assert "Traceback" not in done.err + done.out
    assert message in done.err.replace("\n", " ")
    assert not done.folder.exists()


def test_folders_that_cannot_be_used_are_reported(
    predict: Predict, scans: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    check(predict(images=empty), "holds no images; alseg reads files ending in")
    check(predict(of=tmp_path / "nowhere"), "nowhere is not a run folder")
    inside = predict(f"output={scans / 'out'}")
    check(inside, "in the folder of the images")
    assert not (scans / "out").exists()
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "config.yaml").touch()
    into_a_run = predict(f"output={run_folder}")
    assert into_a_run.exit_code == 2
    assert "run, which is the folder of a run; give another one" in " ".join(into_a_run.err.split())
    assert [path.name for path in run_folder.iterdir()] == ["config.yaml"]
    shutil.copy(scans / "phantom_000.nii.gz", scans / "twice.nii.gz")
    (scans / "twice.nii").write_bytes(gzip.decompress((scans / "twice.nii.gz").read_bytes()))
    twice = predict(output="twice")
    assert twice.exit_code == 2
    table = table_of(twice.folder)
    assert "both give the id twice" in table["message"]["twice"]
    assert set(table["status"].drop("twice")) == {"done"}


def test_a_table_of_something_else_is_left_alone(predict: Predict, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "cases.csv").write_text("case_id,dice\na,1\n")
    done = predict()
    assert done.exit_code == 2
    assert "is not a table of these classes" in done.err
    assert (folder / "cases.csv").read_text() == "case_id,dice\na,1\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "rounds/round_02/best.ckpt").unlink(), "weights have been removed"),
        (lambda run: cut(run / "rounds/round_02/best.ckpt"), "best.ckpt is damaged"),
        (lambda run: (run / "state.json").write_text("{"), "state.json cannot be read"),
        (lambda run: (run / "state.json").unlink(), "is not a run folder"),
        (lambda run: unfinished(run), "has finished no round yet"),
        (lambda run: (run / "task.json").write_text("{}"), "does not say which channels"),
        (lambda run: (run / "task.json").unlink(), "task.json cannot be read"),
        (lambda run: swap(run, "monai.networks.nets.UNet", "os.system"), "is 'os.system', which"),
        (
            lambda run: swap(run, "monai.transforms.Orientation", "own.Turn"),
            "trusted_packages=[own]",
        ),
        (
            lambda run: swap(run, "channels:", "chanels:"),
            "config.yaml was changed after the run had started",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "damaged",
)
def test_damaged_and_foreign_run_folders_are_reported(
    predict: Predict, run: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "state.json.previous").unlink()
    damage(copy)
    check(predict("round=2", of=copy), message)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def swap(run: Path, old: str, new: str) -> None:
    path = run / "config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def unfinished(run: Path) -> None:
    content = read_json(run / "state.json")
    write_json(run / "state.json", content | {"finished_rounds": 0, "history": [], "timings": []})
    for number in (1, 2):
        (run / f"rounds/round_{number:02d}/stages.json").unlink()


def test_a_round_that_is_evaluated_and_not_finished_counts(
    predict: Predict, run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "state.json.previous").unlink()
    content = read_json(copy / "state.json")
    first = content["history"][0] | {"val_dice": 0.0}
    short = {"finished_rounds": 1, "history": [first], "timings": content["timings"][:1]}
    write_json(copy / "state.json", content | short)
    assert "with the network of round 2 of" in predict(of=copy).out
    stages = read_json(copy / "rounds/round_02/stages.json")
    write_json(copy / "rounds/round_02/stages.json", {"training": stages["training"]})
    assert "with the network of round 1 of" in predict(of=copy, output="older").out
    assert "has evaluated the rounds 1 to 1" in predict("round=2", of=copy, output="none").err


def test_nothing_but_the_run_folder_is_needed(predict: Predict, run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "elsewhere = there")
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(text.replace("phantoms", "gone"))
    done, expected = predict(of=moved), predict(output="expected")
    assert done.exit_code == 0, done.err
    for path in expected.folder.glob("*.nii.gz"):
        assert path.read_bytes() == (done.folder / path.name).read_bytes()


@pytest.mark.parametrize("source", ["ensemble", "svgd", "tta"])
def test_each_source_of_uncertainty_makes_maps(
    predict: Predict, shared: Path, tmp_path: Path, source: str
) -> None:
    run = tmp_path / source
    size = {"ensemble": "n_members=2", "svgd": "n_particles=2", "tta": "axes=[0]"}[source]
    run_smoke(run, shared, "strategy=variance", f"uncertainty={source}", f"uncertainty.{size}")
    settings = "uncertainty_map=true", "measure=variance"
    done = predict("round=1", *settings, of=run)
    assert done.exit_code == 0, done.err
    assert voxels(done.folder / "uncertainty" / "phantom_000.nii.gz").max() > 0
    last = predict("round=2", *settings, of=run, output="last")
    if source == "ensemble":  # the last round acquires nothing, and so trains one network
        assert last.exit_code == 2
        assert "choose such a round with round=N (alseg.predict needs them only for" in last.err
    else:
        assert last.exit_code == 0, last.err


def test_on_hippocampus_the_dice_is_that_of_the_run(
    predict: Predict, hippocampus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    overrides = [
        "data=msd_hippocampus", f"data.root={hippocampus}", "model=unet_tiny", "strategy=random",
        "data.validation_share=0.02", "data.test_share=0.03", "data.num_workers=0",
        "pool.initial=4", "pool.rounds=1", "steps_per_round=30", "val_interval=30", "pictures=0",
        "trainer=cpu", "tracking=none", f"output_dir={tmp_path}",
    ]  # fmt: skip
    train(composed(overrides), run, overrides)
    cases = held_out_cases(run, hippocampus, tmp_path / "held_out")
    done = predict(of=run, images=tmp_path / "held_out")
    assert done.exit_code == 0, done.err
    noted = pd.read_csv(run / "metrics.csv")["test_dice"][0]
    folders = done.folder, hippocampus / "labelsTr"
    found = [np.mean([dice(*folders, i, value) for i in cases["case_id"]]) for value in (1, 2)]
    assert np.mean(found) == pytest.approx(noted, abs=1e-6)


def held_out_cases(run: Path, data: Path, folder: Path) -> pd.DataFrame:
    """The test cases of a run's first round; links to their images are made in a folder."""
    cases = pd.read_csv(run / "rounds/round_01/cases.csv").query("part == 'test'")
    folder.mkdir()
    for case_id in cases["case_id"]:
        (folder / f"{case_id}.nii.gz").symlink_to(data / f"imagesTr/{case_id}.nii.gz")
    return cases


def dice(segmented: Path, labels: Path, case_id: str, value: int) -> float:
    p, t = (voxels(folder / f"{case_id}.nii.gz") == value for folder in (segmented, labels))
    return float(2 * (p & t).sum() / (p.sum() + t.sum()))


def test_the_mean_prediction_of_networks_is_what_the_run_reports(
    predict: Predict, data: Path, shared: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_smoke(run, shared, "strategy=random", "pool.rounds=1", "evaluation.networks=2")
    images = tmp_path / "held_out"
    cases = held_out_cases(run, data, images)
    done = predict(of=run, images=images)
    assert done.exit_code == 0, done.err
    found = [dice(done.folder, data / "labelsTr", case_id, 1) for case_id in cases["case_id"]]
    assert found == pytest.approx(cases["dice_liver"].tolist(), abs=1e-6)
    assert "with the mean prediction of the 2 networks of round 1" in done.out
    assert "mean prediction of 2 networks, the first of which is here" in readme(
        load_trained(str(run))
    )
    (run / "rounds/round_01/best_member_2.ckpt").unlink()
    refused = predict(of=run, images=images, output="without")
    assert refused.exit_code == 2
    assert "best_member_2.ckpt: the round's weights have been removed" in refused.err


def test_scans_in_folders_with_long_names_are_segmented(
    predict: Predict, scans: Path, tmp_path: Path
) -> None:
    first = min(scans.iterdir())
    deep = scans / ("1.2.840." * 14) / ("1.2.840." * 14)
    deep.mkdir(parents=True)
    shutil.copy(first, deep / "ct.nii.gz")
    done = predict("uncertainty_map=true")
    assert done.exit_code == 0, done.err
    table = table_of(done.folder)
    (long,) = [row for case_id, row in table.iterrows() if len(case_id) > 200]
    assert len(long["file"]) < 100
    assert np.array_equal(voxels(done.folder / long["file"]), voxels(done.folder / first.name))
    assert (done.folder / "uncertainty" / long["file"]).is_file()
    again = predict("uncertainty_map=true")
    assert "segmented 0 scans" in again.out


def test_a_number_in_the_table_that_is_none_is_told(predict: Predict, scans: Path) -> None:
    change_cell(predict().folder / "cases.csv", 5, "many")
    refused = predict()
    assert refused.exit_code == 2
    assert "cases.csv cannot be read" in refused.err
    assert "give another output" in refused.err


def test_settings_that_were_changed_after_training_are_refused(
    predict: Predict, run: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(run, tmp_path / "changed")
    path = changed / "config.yaml"
    path.write_text(path.read_text().replace("a_max: 180", "a_max: 90"))
    refused = predict(of=changed)
    assert refused.exit_code == 2
    assert f"{path} was changed after the run had started" in refused.err
    task = json.loads((run / "task.json").read_text())
    task |= {"classes": ["background", "liver", "liver"]}
    del task["sha256"]
    shutil.copy(run / "config.yaml", path)
    (changed / "task.json").write_text(json.dumps(task))
    assert "task.json is damaged: it names a class twice" in predict(of=changed).err
