"""What a data set says about itself is read, or contradicted in one sentence."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alseg.core.errors import DataError
from alseg.data.formats.msd import read_msd
from alseg.data.formats.nnunet import read_nnunet
from alseg.data.survey import left_out
from tests.data.builders import touch, touch_msd, touch_nnunet, write_json

NAMES = [f"case_{i:02d}" for i in range(6)]
SOME = st.sets(st.sampled_from(NAMES), max_size=len(NAMES) - 1)


def messages(task: object) -> dict[str, str]:
    return {finding.kind: finding.message for finding in task.findings}  # type: ignore[attr-defined]


def names_all(message: str, names: set[str]) -> bool:
    return all(name in message for name in sorted(names)[:5]) and str(len(names)) in message


@settings(derandomize=True, deadline=None, max_examples=40)
@given(unlisted=SOME, n_said=st.integers(0, 8))
def test_msd_files_that_are_not_listed_are_named(
    tmp_path_factory: pytest.TempPathFactory, unlisted: set[str], n_said: int
) -> None:
    root = touch_msd(tmp_path_factory.mktemp("msd"), NAMES, numTraining=n_said)
    content = json.loads((root / "dataset.json").read_text())
    content["training"] = [
        entry for entry in content["training"] if not any(n in entry["image"] for n in unlisted)
    ]
    write_json(root / "dataset.json", content)
    task = read_msd(root)
    n_listed = len(NAMES) - len(unlisted)
    assert len(task.cases) == n_listed
    kinds = [finding.kind for finding in task.findings]
    assert ("numTraining" in kinds) == (n_said != n_listed)
    messages = [f.message for f in task.findings if f.kind == "not used"]
    assert len(messages) == (2 if unlisted else 0)  # images and labels
    assert all(names_all(message, unlisted) for message in messages)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(unlabelled=SOME, channels=st.integers(1, 2), named=st.integers(1, 2))
def test_nnunet_files_that_go_with_no_case_are_named(
    tmp_path_factory: pytest.TempPathFactory, unlabelled: set[str], channels: int, named: int
) -> None:
    root = touch_nnunet(tmp_path_factory.mktemp("nnunet"), NAMES, ["CT", "PET"][:channels])
    for name in unlabelled:
        (root / "labelsTr" / f"{name}.nii.gz").unlink()
    named = min(named, channels)
    content = json.loads((root / "dataset.json").read_text())
    content["channel_names"] = {str(i): f"channel {i}" for i in range(named)}
    write_json(root / "dataset.json", content)
    task = read_nnunet(root)
    findings = messages(task)
    assert set(task.unlabelled) == unlabelled
    assert [names_all(finding.message, unlabelled) for finding in left_out(task)] == (
        [True] if unlabelled else []
    )
    assert ("numTraining" in findings) == bool(unlabelled)
    assert ("not used" in findings) == (named < channels)  # a channel that is not named


def test_a_label_in_another_ending_is_not_dropped_silently(tmp_path: Path) -> None:
    root = touch_nnunet(tmp_path, NAMES)
    (root / "labelsTr" / "case_00.nii.gz").rename(root / "labelsTr" / "case_00.nii")
    task = read_nnunet(root)
    assert task.unlabelled == ["case_00"]
    assert "case_00.nii" in messages(task)["not used"]


def entry_of(name: str) -> dict:
    return {"images": [f"imagesTr/{name}_0000.nii.gz"], "label": f"corrected/{name}.nii.gz"}


def test_nnunets_key_dataset_is_read(tmp_path: Path) -> None:
    root = touch_nnunet(tmp_path, NAMES, dataset={name: entry_of(name) for name in NAMES})
    for name in NAMES:
        touch(root / "corrected" / f"{name}.nii.gz")
    task = read_nnunet(root)
    assert [case.label.parent.name for case in task.cases.values()] == ["corrected"] * len(NAMES)
    assert messages(task)["not used"].startswith("labelsTr holds 6 files that 'dataset' does not")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "must name at least one case"),
        ([], "must name at least one case"),
        ({"a": 3}, "needs 'images' with 1 file"),
        ({"a": entry_of("case_00") | {"images": []}}, "needs 'images' with 1 file"),
        ({"a": {"images": ["imagesTr/case_00_0000.nii.gz"]}}, "and 'label', got"),
        ({"a": entry_of("../../x")}, "lies outside the data set's folder"),
        ({"a": entry_of("case_00") | {"label": "/etc/passwd"}}, "lies outside the data set's"),
        ({"a/b": entry_of("case_00")}, "which is not a name"),
        ({"a": entry_of("case_00"), "b": entry_of("case_00")}, "twice, for a and for b"),
    ],
)
def test_a_broken_key_dataset_is_told(tmp_path: Path, change: object, message: str) -> None:
    root = touch_nnunet(tmp_path, NAMES, dataset=change)
    touch(root / "corrected" / "case_00.nii.gz")
    with pytest.raises(DataError, match=message):
        read_nnunet(root)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"numTraining": 7}, "numTraining"),
        ({"numTraining": "many"}, "numTraining"),
        ({"numTest": 3}, "numTest"),
        ({"test": [f"./imagesTr/{NAMES[0]}.nii.gz"]}, "test"),
        ({"tensorImageSize": "4D"}, "tensorImageSize"),
        ({"tensorImageSize": "2D"}, "tensorImageSize"),
        ({"modality": {"0": "T1", "1": "T2"}}, "tensorImageSize"),
        ({"channel_names": {"0": "MR"}}, "channel names"),
        ({"modality": {"0": "noNorm"}}, "noNorm"),
        ({"labels": {"0": "liver", "1": "tumour"}}, "background"),
    ],
)
def test_statements_that_do_not_hold_are_told(tmp_path: Path, changes: dict, kind: str) -> None:
    assert list(messages(read_msd(touch_msd(tmp_path, NAMES, **changes)))) == [kind]


@pytest.mark.parametrize(
    "changes",
    [
        {"numTraining": 6, "numTest": 0},
        {"numTraining": "6"},
        {"tensorImageSize": "3d"},
        {"channel_names": {"0": "CT"}},
        {"labels": {"0": "Background", "1": "x"}},
        {"modality": {"0": "T1", "1": "T2"}, "tensorImageSize": "4D"},
    ],
)
def test_statements_that_hold_are_not(tmp_path: Path, changes: dict) -> None:
    assert not read_msd(touch_msd(tmp_path, NAMES, **changes)).findings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"0": "liver", "1": "background"}}, "'labels' gives background the value 1"),
        (
            {"training": "label twice"},
            r"labelsTr/case_00.nii.gz twice, for case_00 and for case_01",
        ),
        ({"training": "image as label"}, r"imagesTr/case_00.nii.gz twice, for case_00 and for"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    image, label = "imagesTr/case_0{}.nii.gz", "labelsTr/case_0{}.nii.gz"
    entries = {
        "label twice": [{"image": image.format(i), "label": label.format(0)} for i in range(2)],
        "image as label": [{"image": image.format(0), "label": image.format(0)}],
    }
    if "training" in changes:
        changes = {"training": entries[changes["training"]]}
    with pytest.raises(DataError, match=message):
        read_msd(touch_msd(tmp_path, NAMES, **changes))


@pytest.mark.parametrize("read", [read_msd, read_nnunet])
def test_names_that_differ_in_capital_letters_only_are_told(tmp_path: Path, read: Callable) -> None:
    touch_data = touch_msd if read is read_msd else touch_nnunet
    task = read(touch_data(tmp_path / "alike", ["Case_1", "case_1", "case_2"]))
    assert "Case_1, case_1;" in messages(task)["capital letters"]
    assert not messages(read(touch_data(tmp_path / "apart", ["Case_1", "case_2"])))


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path, encoding: str) -> None:
    path = touch_msd(tmp_path, ["Müller"]) / "dataset.json"
    path.write_bytes(codecs.encode(path.read_text(encoding="utf-8"), encoding))
    assert list(read_msd(tmp_path).cases) == ["Müller"]


def test_a_key_that_comes_twice_is_told(tmp_path: Path) -> None:
    path = touch_msd(tmp_path, NAMES) / "dataset.json"
    path.write_text(path.read_text().replace('"1": "blob"', '"1": "liver", "1": "tumour"'))
    with pytest.raises(DataError, match="not valid JSON: the key '1' comes twice in one object"):
        read_msd(tmp_path)


def test_formats_that_are_mixed_up_are_told_by_name(tmp_path: Path) -> None:
    msd = touch_msd(tmp_path / "msd", NAMES)
    with pytest.raises(DataError, match="of the Medical Segmentation Decathlon; use data=msd"):
        read_nnunet(msd)
    with pytest.raises(DataError, match="an nnU-Net v2 raw data set; use data=nnunet"):
        read_msd(touch_nnunet(tmp_path / "v2", NAMES))
    first = touch_msd(tmp_path / "v1", NAMES)
    for path in (first / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    for read in (read_msd, read_nnunet):
        with pytest.raises(DataError, match=r"nnU-Net v1.*nnUNetv2_convert_old_nnUNet_dataset"):
            read(first)
    plain = touch_nnunet(tmp_path / "plain", NAMES)
    for path in (plain / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))
    with pytest.raises(DataError, match=r"nnU-Net calls it case_00_0000.nii.gz. Rename"):
        read_nnunet(plain)
