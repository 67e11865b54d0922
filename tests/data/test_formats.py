import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from alseg.core.errors import ConfigError, DataError
from alseg.data.formats.dataset_json import names_by_index
from alseg.data.formats.msd import read_msd
from alseg.data.formats.nnunet import read_nnunet
from alseg.data.headers import check_headers
from alseg.data.splits import split_by_fraction, split_from_file
from tests.conftest import write_msd

VOLUME = np.zeros((6, 5, 4), np.float32)
LABEL = np.zeros((6, 5, 4), np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_msd(tmp_path / "data", [VOLUME] * 3, [LABEL] * 3)


def edit(root: Path, **changes: object) -> Path:
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return root


def test_msd_is_read_as_its_json_describes_it(root: Path) -> None:
    task = read_msd(root)
    assert (task.name, task.channels, task.classes) == ("Blobs", ("MRI",), ("background", "blob"))
    assert list(task.cases) == ["case_00", "case_01", "case_02"]
    assert task.cases["case_01"].label == root / "labelsTr" / "case_01.nii.gz"
    check_headers(task, task.cases, labels=True)


def test_the_real_hippocampus_is_read(hippocampus: Path) -> None:
    task = read_msd(hippocampus)
    assert len(task.cases) == 200
    assert task.foreground == ("Anterior", "Posterior")
    check_headers(task, task.cases, labels=True)


def test_nnunet_is_read_with_its_channels(tmp_path: Path) -> None:
    root = tmp_path / "Dataset001_Blobs"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for name in ("imagesTr/a_0000", "imagesTr/a_0001", "labelsTr/a"):
        nibabel.save(nibabel.Nifti1Image(VOLUME, np.eye(4)), root / f"{name}.nii.gz")
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "blob": 1},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    task = read_nnunet(root)
    assert (task.channels, task.classes) == (("T1", "T2"), ("background", "blob"))
    assert [path.name for path in task.cases["a"].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    check_headers(task, ["a"], labels=True)

    for changes, message in (
        ({"labels": {"background": 0, "region": [1, 2]}}, "one integer"),
        ({"file_ending": ".mha"}, "reads .nii.gz and .nii"),
        ({"labels": {"background": 0, "blob": 2}}, "as 0, 1, 2"),
    ):
        (root / "dataset.json").write_text(json.dumps(content | changes))
        with pytest.raises(DataError, match=message):
            read_nnunet(root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": []}, "lists no cases"),
        ({"training": None}, "lists no cases"),
        ({"training": ["a.nii.gz"]}, "needs 'image' and 'label'"),
        ({"training": [{"image": 3, "label": "x"}]}, "must be a string"),
        ({"training": [{"image": "imagesTr/none.nii.gz", "label": "x"}]}, "there is no file"),
        ({"training": [{"image": "../data.nii.gz", "label": "x"}]}, "outside the data set's"),
        ({"training": [{"image": "/etc/passwd", "label": "x"}]}, "outside the data set's"),
        ({"labels": {"0": "background"}}, "at least 2"),
        ({"labels": {"0": "background", "2": "blob"}}, "as 0, 1, 2"),
        ({"labels": ["background", "blob"]}, "as 0, 1, 2"),
        ({"modality": {}}, "at least 1"),
    ],
)
def test_a_broken_dataset_json_is_told(root: Path, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_msd(edit(root, **changes))


def test_a_case_listed_twice_is_told(root: Path) -> None:
    entry = {"image": "imagesTr/case_00.nii.gz", "label": "labelsTr/case_00.nii.gz"}
    with pytest.raises(DataError, match="case_00 twice"):
        read_msd(edit(root, training=[entry, entry]))


def test_missing_folder_and_json_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        read_msd(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no dataset\.json"):
        read_msd(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_msd(tmp_path)


def test_headers_are_checked(root: Path) -> None:
    task = read_msd(root)
    nibabel.save(nibabel.Nifti1Image(LABEL[:-1], np.eye(4)), task.cases["case_01"].label)
    with pytest.raises(DataError, match=r"labelsTr/case_01.nii.gz has shape \(5, 5, 4\)"):
        check_headers(task, task.cases, labels=True)
    check_headers(task, task.cases, labels=False)  # hidden labels are not opened
    task.cases["case_02"].images[0].write_bytes(b"no NIfTI")
    with pytest.raises(DataError, match=r"case_02\.nii\.gz is not a readable NIfTI"):
        check_headers(task, task.cases, labels=False)


def test_channels_must_be_as_many_as_named(tmp_path: Path) -> None:
    image = np.zeros((6, 5, 4, 2), np.float32)
    two = write_msd(tmp_path / "two", [image], [LABEL], channels=("T1", "T2"))
    check_headers(read_msd(two), ["case_00"], labels=True)
    one = write_msd(tmp_path / "one", [image], [LABEL])
    with pytest.raises(DataError, match=r"1 channel is needed"):
        check_headers(read_msd(one), ["case_00"], labels=True)


def test_split_by_fraction_is_a_partition_and_a_function_of_its_seed() -> None:
    ids = [f"c{i}" for i in range(20)]
    splits = split_by_fraction(ids, validation=0.2, test=0.1, seed=3)
    assert (len(splits.training), len(splits.validation), len(splits.test)) == (14, 4, 2)
    assert sorted(splits.training + splits.validation + splits.test) == sorted(ids)
    assert splits == split_by_fraction(reversed(ids), validation=0.2, test=0.1, seed=3)
    assert splits != split_by_fraction(ids, validation=0.2, test=0.1, seed=4)
    with pytest.raises(ConfigError, match=r"data.splits.validation is 1.5"):
        split_by_fraction(ids, validation=1.5, test=0.1, seed=3)
    with pytest.raises(ConfigError, match="leaves a part empty"):
        split_by_fraction(ids, validation=0.9, test=0.09, seed=3)


def test_explicit_splits_name_known_cases_once(tmp_path: Path) -> None:
    path = tmp_path / "split.json"

    def write(**parts: object) -> Path:
        path.write_text(json.dumps(parts))
        return path

    write(
        training=[{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}, "d"],
        validation=["b"],
        test=["c"],
    )
    splits = split_from_file("abcd", file=path)
    assert (splits.training, splits.validation, splits.test) == (("a", "d"), ("b",), ("c",))
    for parts, message in (
        ({"training": ["a"], "validation": ["b"]}, "'test' must be a list"),
        ({"training": ["a"], "validation": ["b"], "test": ["z"]}, "names 'z', which"),
        ({"training": ["a"], "validation": ["b"], "test": ["a"]}, "names a twice"),
        ({"training": [1], "validation": ["b"], "test": ["a"]}, "names no case"),
    ):
        with pytest.raises(DataError, match=message):
            split_from_file("abcd", file=write(**parts))
    with pytest.raises(DataError, match="there is no file"):
        split_from_file("abcd", file=tmp_path / "none.json")


def test_the_tutorials_split_of_task03_is_93_26_12() -> None:
    path = Path(__file__).parents[2] / "conf" / "splits" / "task03_liver.json"
    splits = split_from_file((f"liver_{i}" for i in range(131)), file=path)
    assert [len(part) for part in (splits.training, splits.validation, splits.test)] == [93, 26, 12]


def test_two_channels_may_be_of_one_modality_but_no_two_classes_of_one_name() -> None:
    twice = {"0": "CT", "1": "CT"}
    assert names_by_index(twice, "channel_names", Path("dataset.json")) == ("CT", "CT")
    with pytest.raises(DataError, match="'labels' holds a name twice"):
        names_by_index(twice, "labels", Path("dataset.json"))
