"""``python -m alseg.export RUN nnunet=FOLDER`` through its front door."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from alseg.core.pool import Pool
from alseg.core.units import IGNORED, Unit, whole
from alseg.data.formats.nnunet import read_nnunet
from alseg.data.labels import read_label
from alseg.data.task import Case
from alseg.engine.nnunet_export import Exported, names_on_disk, write_images
from alseg.oracles.annotations import Annotations
from alseg.system.files import checksum_of
from tests.annotation_page.campaign import ASKED, SHAPE, drawn, lay_out_campaign
from tests.data import nnunet_with_ignore, test_itk
from tests.run_folders import blobs, run_on
from tests.smoke_runs import run_smoke

REGION = ((1, 5), (0, 3), (2, 5))
Export = Callable[..., tuple[int, str, str]]


@pytest.fixture
def export(call_entry_point: Callable[..., tuple[int, str, str]]) -> Export:
    """Call ``python -m alseg.export RUN nnunet=FOLDER`` in this process."""
    from alseg.export import main

    def call(run: Path, folder: Path, *overrides: str) -> tuple[int, str, str]:
        return call_entry_point(main, str(run), f"nnunet='{folder}'", *overrides)

    return call


def content(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    return loaded


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_the_pool_becomes_labelled_training_data_and_all_others_images(
    export: Export, tmp_path: Path
) -> None:
    root, labels = blobs(tmp_path / "data")
    hidden = ["case_00", "case_02", "case_04"]
    for case_id in hidden:  # whoever opens them fails
        (root / "labelsTr" / f"{case_id}.nii.gz").write_bytes(b"hidden")
    run = run_on(tmp_path / "run", root, Pool(("case_03", "case_01"), ("case_02",)))
    code, said, errors = export(run, tmp_path / "raw/Dataset042_Blobs")
    assert code == 0, errors
    folder = tmp_path / "raw/Dataset042_Blobs"
    assert "wrote 2 annotated volumes and 3 others" in " ".join(said.split())
    assert "nnUNetv2_plan_and_preprocess -d 42" in " ".join(said.split())
    assert names(folder) == ["case_names.csv", "dataset.json", "imagesTr", "imagesTs", "labelsTr"]
    assert names(folder / "labelsTr") == ["case_01.nii.gz", "case_03.nii.gz"]
    assert names(folder / "imagesTr") == ["case_01_0000.nii.gz", "case_03_0000.nii.gz"]
    assert names(folder / "imagesTs") == [f"{case_id}_0000.nii.gz" for case_id in hidden]
    described = content(folder)
    assert described["channel_names"] == {"0": "MRI"}
    assert described["labels"] == {"background": 0, "blob": 1}
    assert (described["numTraining"], described["file_ending"]) == (2, ".nii.gz")
    for index in (1, 3):
        image = root / "imagesTr" / f"case_{index:02d}.nii.gz"
        copy = folder / "imagesTr" / f"case_{index:02d}_0000.nii.gz"
        assert copy.read_bytes() == image.read_bytes()
        label = nibabel.load(folder / "labelsTr" / f"case_{index:02d}.nii.gz")
        assert np.array_equal(np.asarray(label.dataobj), labels[index])
        assert np.array_equal(label.affine, nibabel.load(copy).affine)
        assert label.get_data_dtype() == np.uint8


def test_alseg_reads_it_back_as_it_is(export: Export, tmp_path: Path) -> None:
    root, labels = blobs(tmp_path / "data")
    run = run_on(tmp_path / "run", root, Pool(("case_03", "case_01"), ()))
    assert export(run, tmp_path / "Dataset001_Blobs", "unlabelled_images=false")[0] == 0
    assert names(tmp_path / "Dataset001_Blobs/imagesTs") == []
    task = read_nnunet(tmp_path / "Dataset001_Blobs")
    assert (task.classes, task.channels) == (("background", "blob"), ("MRI",))
    assert (task.labelled, task.unlabelled, task.findings) == (["case_01", "case_03"], [], ())
    for case_id, index in (("case_01", 1), ("case_03", 3)):
        path = task.cases[case_id].label
        assert path is not None
        assert np.array_equal(read_label(task, path)[0].numpy()[0], labels[index])


def test_images_that_nnunet_refuses_for_their_voxels_are_named(
    export: Export, tmp_path: Path
) -> None:
    root, _ = blobs(tmp_path / "data")
    for case_id, value in (("case_00", np.nan), ("case_03", np.inf)):
        path = root / "imagesTr" / f"{case_id}.nii.gz"
        image = nibabel.load(path)
        greys = np.asarray(image.dataobj, np.float32).copy()
        greys[0, 0, 0] = value
        nibabel.save(nibabel.Nifti1Image(greys, image.affine), path)
    run = run_on(tmp_path / "run", root, Pool(("case_03", "case_01"), ()))
    code, said, errors = export(run, tmp_path / "out")
    assert code == 0, errors
    assert "2 cases hold voxels that are NaN or infinite: case_00, case_03;" in " ".join(
        said.split()
    )
    code, said, errors = export(run, tmp_path / "annotated", "unlabelled_images=false")
    assert code == 0, errors
    assert "1 case hold voxels that are NaN or infinite: case_03;" in " ".join(said.split())


def test_what_lies_outside_of_the_regions_is_ignored(export: Export, tmp_path: Path) -> None:
    root, labels = blobs(tmp_path / "data")
    pool = Pool(("case_03", "case_01"), (), regions=(Unit("case_01", REGION),))
    run = run_on(tmp_path / "run", root, pool)
    code, said, errors = export(run, tmp_path / "out")
    assert code == 0, errors
    assert "2 annotated volumes, 1 of them in part, and 3 others" in " ".join(said.split())
    folder = tmp_path / "out/Dataset001_Blobs"
    assert content(folder)["labels"] == {"background": 0, "blob": 1, "ignore": 2}
    inside = tuple(slice(*edges) for edges in REGION)
    expected = np.full(SHAPE, 2)
    expected[inside] = labels[1][inside]
    assert np.array_equal(voxels(folder / "labelsTr/case_01.nii.gz"), expected)
    assert np.array_equal(voxels(folder / "labelsTr/case_03.nii.gz"), labels[3])
    task = read_nnunet(folder)
    path = task.cases["case_01"].label
    assert path is not None
    assert np.array_equal(
        read_label(task, path)[0].numpy()[0], np.where(expected == 2, IGNORED, expected)
    )
    table = pd.read_csv(folder / "case_names.csv", keep_default_na=False).set_index("case")
    assert table.loc[["case_01", "case_03", "case_00"]].to_numpy().tolist() == [
        ["imagesTr/case_01", "1:5,0:3,2:5"],
        ["imagesTr/case_03", "whole"],
        ["imagesTs/case_00", ""],
    ]


def test_a_run_of_regions_hands_on_what_its_queries_revealed(
    export: Export, shared: Path, tmp_path: Path
) -> None:
    patches = ("pool.unit=patch", "pool.patch_voxels=[12,12,8]", "pool.initial=4", "pool.rounds=1")
    state = run_smoke(tmp_path / "run", shared, *patches)
    code, _, errors = export(tmp_path / "run", tmp_path / "Dataset007_Phantoms")
    assert code == 0, errors
    task = read_nnunet(tmp_path / "Dataset007_Phantoms")
    assert task.labelled == sorted(state["pool"]["labelled"])
    n_annotated = 0
    for case_id in task.labelled:
        path = task.cases[case_id].label
        assert path is not None
        n_annotated += int((read_label(task, path)[0] != IGNORED).sum())
    assert n_annotated == 4 * 12 * 12 * 8


def test_channels_become_files(export: Export, tmp_path: Path) -> None:
    root, _ = blobs(tmp_path / "data", n_channels=2, channels=("T1", "FLAIR"))
    run = run_on(tmp_path / "run", root, Pool(("case_01",), ()))
    code, _, errors = export(run, tmp_path / "Dataset001_Blobs")
    assert code == 0, errors
    folder = tmp_path / "Dataset001_Blobs"
    assert content(folder)["channel_names"] == {"0": "T1", "1": "FLAIR"}
    assert names(folder / "imagesTr") == ["case_01_0000.nii.gz", "case_01_0001.nii.gz"]
    source = nibabel.load(root / "imagesTr/case_01.nii.gz")
    for channel in (0, 1):
        image = nibabel.load(folder / f"imagesTr/case_01_{channel:04d}.nii.gz")
        assert np.array_equal(np.asarray(image.dataobj), np.asarray(source.dataobj)[..., channel])
        assert np.array_equal(image.affine, source.affine)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii"])
def test_files_of_another_kind_are_converted(ending: str, tmp_path: Path) -> None:
    source = tmp_path / f"scan{ending}"
    if ending == ".nii":
        nibabel.save(nibabel.Nifti1Image(test_itk.VOXELS, test_itk.oblique()), source)
    else:
        test_itk.write(source)
    (tmp_path / "out").mkdir()
    write_images(tmp_path / "out", Exported(Case("a", (source,), None), "a", None), 1)
    image = nibabel.load(tmp_path / "out/a_0000.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), test_itk.VOXELS)
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(image.affine, test_itk.oblique(), atol=1e-5)


def test_the_ignore_label_of_a_data_set_stays(export: Export, tmp_path: Path) -> None:
    root = nnunet_with_ignore.write(tmp_path / "Dataset009_Balls", n_cases=3)
    run = run_on(tmp_path / "run", root, Pool(("case_000", "case_002"), ()), "nnunet.read_nnunet")
    code, _, errors = export(run, tmp_path / "out")
    assert code == 0, errors
    folder = tmp_path / "out/Dataset009_Balls"  # its own name
    assert content(folder)["labels"] == {"background": 0, "large": 1, "small": 2, "ignore": 3}
    for case_id in ("case_000", "case_002"):
        name = f"labelsTr/{case_id}.nii.gz"
        assert np.array_equal(voxels(folder / name), voxels(root / name))


def test_a_campaign_hands_on_the_newest_version_of_each_label(
    export: Export, tmp_path: Path
) -> None:
    campaign = lay_out_campaign(tmp_path)
    run = campaign.oracle.folder
    run_on(run, campaign.task.root, Pool(("case_00",), tuple(ASKED)))
    for seed in (1, 2):
        for case_id in ASKED[:2]:
            grid = campaign.grid(case_id).affine
            path = campaign.folder / "labels/final" / f"{case_id}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(drawn(seed), grid), path)
        campaign.oracle.annotate(whole(ASKED))
    assert [each.version for each in Annotations(run).history] == [1, 1, 2, 2]
    before = checksum_of(run / "annotations/history.csv")
    code, _, errors = export(run, tmp_path / "Dataset001_Blobs")
    assert code == 0, errors
    folder = tmp_path / "Dataset001_Blobs"
    assert names(folder / "labelsTr") == [
        f"{case_id}.nii.gz" for case_id in ("case_00", *ASKED[:2])
    ]
    assert np.array_equal(voxels(folder / "labelsTr/case_00.nii.gz"), drawn(0))
    for case_id in ASKED[:2]:
        assert np.array_equal(voxels(folder / f"labelsTr/{case_id}.nii.gz"), drawn(2))
    assert checksum_of(run / "annotations/history.csv") == before


def test_cases_that_lack_classes_are_named(export: Export, tmp_path: Path) -> None:
    root, _ = blobs(tmp_path / "data", classes=("background", "blob", "spot"))
    described = content(root) | {"annotated_classes": {"case_01": ["blob"]}}
    (root / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    run = run_on(tmp_path / "run", root, Pool(("case_01", "case_03"), ()))
    code, said, errors = export(run, tmp_path / "Dataset001_Blobs")
    assert code == 0, errors
    assert "not all classes were annotated in case_01" in " ".join((said + errors).split())


def test_classes_that_nnunet_would_take_for_one_are_refused(export: Export, tmp_path: Path) -> None:
    name = "ignore"

    def exported(second: str) -> tuple[int, str, str]:
        data = tmp_path / second
        root, _ = blobs(data / "data", classes=("nothing", name, second))
        run = run_on(data / "run", root, Pool(("case_01",), ()))
        return export(run, data / "Dataset001_Blobs")

    code, _, errors = exported("other")
    assert code == 0, errors
    labels = content(tmp_path / "other" / "Dataset001_Blobs")["labels"]
    assert labels == {"background": 0, f"{name} (class)": 1, "other": 2}
    code, _, errors = exported(f"{name} (class)")
    assert code == 2
    assert f"has the classes '{name}' and '{name} (class)'" in " ".join(errors.split())
    assert not (tmp_path / f"{name} (class)" / "Dataset001_Blobs").exists()


def test_nothing_is_overwritten_and_what_cannot_be_is_said(export: Export, tmp_path: Path) -> None:
    def check(outcome: tuple[int, str, str], message: str) -> None:
        assert outcome[0] == 2
        assert message in " ".join(outcome[2].split())

    root, _ = blobs(tmp_path / "data")
    run = run_on(tmp_path / "run", root, Pool((), ("case_01",)))
    out = tmp_path / "out"
    check(export(tmp_path, out), "is no run folder")
    check(export(run, out), "nothing has been annotated yet in the run")
    check(export(run, out, "bundle=b"), "give either bundle=FOLDER or nnunet=FOLDER")
    check(export(run, out, "round=1"), "nnunet writes all that is annotated by now")
    run_on(run, root, Pool(("case_09",), ()))
    check(export(run, out), "no longer has case_09")
    run_on(run, root, Pool(("case_01",), ()))
    out.mkdir()
    (out / "mine").write_text("mine", encoding="utf-8")
    check(export(run, out), "out, which is not an empty folder; give a new one")
    assert names(out) == ["mine"]
    (root / "labelsTr/case_01.nii.gz").write_bytes(b"broken")
    check(export(run, tmp_path / "new"), "case_01.nii.gz")
    assert not list((tmp_path / "new").glob("*"))


def test_names_of_files_are_safe_and_differ_everywhere() -> None:
    cases = ["liver 1", "liver_1", "Liver_1", "../x", ".hidden", "-f", "é", "CT-01.a", "n" * 200]
    names = names_on_disk(cases)
    assert names["CT-01.a"] == "CT-01.a"
    assert names["liver 1"] == "liver_1-3"
    folded = [name.casefold() for name in names.values()]
    assert len(set(folded)) == len(cases)
    for name in names.values():
        assert name.isascii()
        assert name[0].isalnum()
        assert len(name) < 200
        assert not set(name) & set('/\\ :*?"<>|')


def test_nnunet_itself_finds_no_fault(export: Export, tmp_path: Path) -> None:
    integrity = pytest.importorskip(
        "nnunetv2.experiment_planning.verify_dataset_integrity", reason="nnunetv2 is not installed"
    )
    root, _ = blobs(tmp_path / "data")
    pool = Pool(("case_00", "case_01", "case_02"), (), regions=(Unit("case_01", REGION),))
    run = run_on(tmp_path / "run", root, pool)
    assert export(run, tmp_path / "Dataset001_Blobs")[0] == 0
    integrity.verify_dataset_integrity(str(tmp_path / "Dataset001_Blobs"), num_processes=1)
