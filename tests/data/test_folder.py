"""``data=folder``: any folder of images, through the reader and through the commands."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from alseg.config.build import build_data
from alseg.config.composition import composed, instantiate
from alseg.core.errors import ConfigError, DataError
from alseg.data.formats.folder import read_folder
from alseg.oracles.simulated import SimulatedOracle
from tests.data.builders import touch
from tests.data.test_itk import write


def touched(root: Path, *names: str) -> Path:
    for name in names:
        touch(root / name)
    return root


def test_ids_are_paths_without_endings_and_stay_when_files_come(tmp_path: Path) -> None:
    names = ["a.nii.gz", "b.nii", "p1/ct.nrrd", "p1/sub/ct.mha", "Müller 2.mhd", "c.v2.nii.gz"]
    task = read_folder(touched(tmp_path, *names), ["liver"])
    ids = ["Müller 2", "a", "b", "c.v2", "p1_ct", "p1_sub_ct"]
    assert list(task.cases) == ids == task.unlabelled
    assert (task.channels, task.classes) == (("image",), ("background", "liver"))
    assert (task.name, task.root, task.findings) == (tmp_path.name, tmp_path, ())
    touched(tmp_path, "p2/ct.nrrd", ".hidden/x.nii.gz", "._a.nii.gz", "notes.txt", "scan.raw")
    assert list(read_folder(tmp_path, ["liver"]).cases) == [*ids, "p2_ct"]


def test_labels_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    touched(tmp_path, "a.nii.gz", "p1/ct.nrrd", "b.nii.gz", "labels/a.nii", "labels/p1/ct.mha")
    task = read_folder(tmp_path, ["background", "liver"], labels=tmp_path / "labels")
    assert (task.labelled, task.unlabelled) == (["a", "p1_ct"], ["b"])
    assert task.cases["p1_ct"].label == tmp_path / "labels" / "p1" / "ct.mha"
    touched(tmp_path, "labels/z.nii")
    (finding,) = read_folder(tmp_path, ["liver"], labels=tmp_path / "labels").findings
    assert finding.message == "1 label without an image, not used: z"
    touched(tmp_path, "labels/a.mha")
    with pytest.raises(DataError, match="two labels of the case a"):
        read_folder(tmp_path, ["liver"], labels=tmp_path / "labels")


def test_a_folder_of_labels_is_known_by_whatever_path(tmp_path: Path) -> None:
    scans = touched(tmp_path / "scans", "a.nii.gz", "b.nii.gz", "labels/a.nii.gz")
    (tmp_path / "link").symlink_to(scans / "labels")
    (tmp_path / "scans_link").symlink_to(scans)
    for root, labels in (
        (scans, tmp_path / "link"),
        (tmp_path / "scans_link", scans / "labels"),
        (scans, scans / ".." / "scans" / "labels"),
    ):
        task = read_folder(root, ["liver"], labels=labels)
        assert (list(task.cases), task.labelled) == (["a", "b"], ["a"])
    for labels in (scans, tmp_path / "scans_link"):
        with pytest.raises(ConfigError, match="the folder of the images; labels need one of their"):
            read_folder(scans, ["liver"], labels=labels)


def test_files_that_look_like_volumes_and_are_not_read_are_told(tmp_path: Path) -> None:
    touched(tmp_path, "a.nii.gz", "b.NII.GZ", "p/c.Nrrd", "d.hdr", "e.dcm", "notes.txt", "._f.NII")
    (finding,) = read_folder(tmp_path, ["liver"]).findings
    assert finding.message.startswith("4 files named like volumes, not used")
    assert finding.message.endswith(": b.NII.GZ, d.hdr, e.dcm, p/c.Nrrd")


def test_labels_among_the_images_are_told(tmp_path: Path) -> None:
    images = ["images/a.nii.gz", "maskelyne.nii.gz", "p/segovia_0001.mha"]
    labels = ["labels/a.nii.gz", "labelsTr/b.nii", "p1/GT.mha", "p1/ct-seg.nrrd", "x_mask.nii.gz"]
    touched(tmp_path, *images, *labels)
    (finding,) = read_folder(tmp_path, ["liver"]).findings
    assert finding.message.startswith("5 files named like labels, taken for images")
    assert finding.message.endswith(
        f": {', '.join(labels)}; if they are labels, keep them outside of the folder of the images"
    )
    (tmp_path / "p1" / "GT.mha").unlink()
    for name in ("labelsTr/b.nii", "p1/ct-seg.nrrd", "x_mask.nii.gz"):
        (tmp_path / name).unlink()
    (tmp_path / "labels" / "a.nii.gz").rename(tmp_path / "labels" / "maskelyne.nii.gz")
    assert read_folder(tmp_path, ["liver"], labels=tmp_path / "labels").findings == ()


def test_an_id_that_no_file_can_be_called_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, f"{'1.2.840.' * 15}/{'1.2.840.' * 15}/ct.nii.gz")
    with pytest.raises(DataError, match="is longer than 200 bytes, and files are named by it"):
        read_folder(tmp_path, ["liver"])


def test_channels_are_files_with_numbers_or_one_file(tmp_path: Path) -> None:
    touched(tmp_path, "a_0000.nii.gz", "a_0001.mha", "p/b_0000.nii", "p/b_0001.nii", "both.nii.gz")
    task = read_folder(tmp_path, ["liver"], ["T1", "T2"])
    assert {i: [path.name for path in case.images] for i, case in task.cases.items()} == {
        "a": ["a_0000.nii.gz", "a_0001.mha"],
        "both": ["both.nii.gz"],
        "p_b": ["b_0000.nii", "b_0001.nii"],
    }
    with pytest.raises(DataError, match=r"a_0000, a_0001 look like channels of one case"):
        read_folder(tmp_path, ["liver"])
    with pytest.raises(DataError, match=r"the case a has a_0000, a_0001; with 3 channels .*a_0002"):
        read_folder(tmp_path, ["liver"], ["T1", "T2", "FLAIR"])
    touched(tmp_path, "a.nii.gz")
    with pytest.raises(DataError, match=r"the case a has a, a_0000, a_0001"):
        read_folder(tmp_path, ["liver"], ["T1", "T2"])


def test_numbers_at_the_end_of_single_scans_are_no_channels(tmp_path: Path) -> None:
    task = read_folder(touched(tmp_path, "scan_2019.nii", "scan_2020.nii"), ["liver"])
    assert list(task.cases) == ["scan_2019", "scan_2020"]


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        ([], {}, "holds no images; alseg reads files ending in .nii.gz, .nii, .nrrd"),
        (["a.txt", ".b.nii"], {}, "holds no images"),
        (["a.nii"], {"classes": None}, r"data\.classes is not given; .*data.classes=\[liver,tum"),
        (["a.nii"], {"classes": []}, "data.classes is not given"),
        (["a.nii"], {"classes": "liver"}, "data.classes is 'liver'; it must be a list"),
        (["a.nii"], {"classes": "left ventricle,b"}, r"names: 'data.classes=\[left ventricle,b\]'"),
        (["a.nii"], {"classes": [3]}, "must be a list of names"),
        (["a.nii"], {"classes": ["background"]}, "each class is named once"),
        (["a.nii"], {"classes": ["liver", "background"]}, "each class is named once"),
        (["a.nii"], {"classes": ["liver", "liver"]}, "each class is named once"),
        (["a.nii"], {"channels": []}, "data.channels is"),
        (["a.nii", "a.nii.gz"], {}, "a.nii and a.nii.gz both give the id a; rename"),
        (["p/a.nii", "p_a.nii"], {}, "p/a.nii and p_a.nii both give the id p_a"),
        (["a.nii"], {"labels": "nowhere"}, "data.labels is nowhere, which is not a folder"),
    ],
)
def test_what_cannot_be_meant_is_told(
    tmp_path: Path, names: list[str], arguments: dict, message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        read_folder(touched(tmp_path, *names), **{"classes": ["liver"]} | arguments)


def test_labels_that_go_with_no_image_are_refused(tmp_path: Path) -> None:
    touched(tmp_path, "images/a_0000.nii", "labels/a.nii", "none/notes.txt")
    with pytest.raises(DataError, match="there are the labels a and the images a_0000"):
        read_folder(tmp_path / "images", ["liver"], labels=tmp_path / "labels")
    with pytest.raises(DataError, match="which holds no label files"):
        read_folder(tmp_path / "images", ["liver"], labels=tmp_path / "none")


def test_links_never_lead_the_search_out_of_the_folder(tmp_path: Path) -> None:
    touched(tmp_path / "outside", "secret.nii", "store.nii")
    root = touched(tmp_path / "data", "a.nii")
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    (root / "b.nii").symlink_to(tmp_path / "outside" / "store.nii")  # as in git-annex
    task = read_folder(root, ["liver"])
    assert list(task.cases) == ["a", "b"]
    messages = [finding.message for finding in task.findings]
    assert messages[0] == "2 links to folders, not followed: linked, loop"
    assert "1 file is a link out of the data set's folder" in messages[1]
    (root / "c.nii").symlink_to(tmp_path / "gone.nii")
    with pytest.raises(DataError, match=r"a link to .*gone\.nii, which is not there"):
        read_folder(root, ["liver"])


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    root = touched(tmp_path, "a.nii", "p/b.nii")
    (root / "p").chmod(0)
    with pytest.raises(DataError, match="p cannot be read"):
        read_folder(root, ["liver"])


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Six volumes of three types, two of them with a label."""
    root, rng = tmp_path / "scans", np.random.default_rng(0)
    for index, name in enumerate(["a.nii.gz", "b.nii.gz", "c.nrrd", "d.mha", "p/e.mha", "f.nrrd"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        voxels = rng.integers(0, 500, (12, 10, 8)).astype(np.int16)
        if path.suffix == ".gz":
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
        else:
            write(path, voxels)
        if index in (1, 2):
            (tmp_path / "labels").mkdir(exist_ok=True)
            label = (voxels > 400).astype(np.uint8)
            if index == 1:
                image = nibabel.Nifti1Image(label, np.eye(4))
                nibabel.save(image, tmp_path / "labels" / "b.nii.gz")
            else:
                write(tmp_path / "labels" / "c.mha", label)
    return root


@pytest.fixture
def validate(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call_entry_point: Callable[..., tuple[int, str, str]],
) -> Callable[..., tuple[int, str, dict]]:
    from alseg.validate import main

    def call(*overrides: str) -> tuple[int, str, dict]:
        monkeypatch.chdir(tmp_path)
        arguments = ["data=folder", "workers=1", "json=report.json", *overrides]
        exit_code, out, err = call_entry_point(main, *arguments)
        path = tmp_path / "report.json"
        report = json.loads(path.read_text()) if path.exists() else {}
        return exit_code, " ".join((out + err).split()), report

    return call


def test_validate_looks_at_a_folder(scans: Path, tmp_path: Path, validate: Callable) -> None:
    where = f"data.root={scans}"
    exit_code, printed, report = validate(where, "data.classes=[vessel]")
    assert exit_code == 0, printed
    assert "6 cases without a label, left out of the simulation: a, b, c, d, f" in printed
    assert [case["case"] for case in report["cases"]] == ["a", "b", "c", "d", "f", "p_e"]
    exit_code, printed, report = validate(
        where, "data.classes=[vessel]", f"data.labels={tmp_path / 'labels'}"
    )
    assert exit_code == 0, printed
    assert "4 cases without a label" in printed
    (scans / "d.mha").write_bytes((scans / "d.mha").read_bytes()[:500])
    exit_code, printed, report = validate(where, "data.classes=[vessel]")
    assert exit_code == 2
    assert "1 of the 6 cases" in printed
    exit_code, printed, _ = validate(where)
    assert exit_code == 2
    assert "data.classes is not given" in printed


def test_a_person_is_offered_all_scans_of_a_folder(scans: Path, tmp_path: Path) -> None:
    class Person(SimulatedOracle):
        annotates_unlabelled = True

    settings = ["data=folder", f"data.root={scans}", "data.classes=[vessel]"]
    config = composed([*settings, f"cache_dir={tmp_path}/cache"])
    task = instantiate(config.data.task)
    config.data.splits = {"_target_": "tests.data.test_folder.all_train"}
    data = build_data(config, task, Person(task))
    assert list(data.splits.training) == list(task.cases)
    data.prepare(["c", "p_e"])
    assert data.cache.image("c")["image"].shape[0] == 1


def all_train(case_ids: list[str]) -> object:
    from alseg.data.splits import Splits

    return Splits(tuple(case_ids), (), ())
