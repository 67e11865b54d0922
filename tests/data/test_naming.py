"""Names in a data set: ids come from them, links are only read, and nothing leaves the folder."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alseg.core.errors import DataError
from alseg.data.formats.msd import read_msd
from alseg.data.formats.nnunet import read_nnunet
from alseg.data.naming import case_ids_of, inside, matching_case
from alseg.data.splits import split_from_file
from tests.data.builders import touch_msd, touch_nnunet, write_json

SOURCE = Path("dataset.json")
WORD = st.text("ab_-é1", min_size=1, max_size=3)
PATHS = st.lists(
    st.lists(WORD, min_size=1, max_size=4).map(lambda parts: PurePosixPath(*parts)),
    min_size=1,
    max_size=8,
    unique_by=lambda path: unicodedata.normalize("NFC", str(path)),
)


@settings(derandomize=True, deadline=None)
@given(paths=PATHS, form=st.sampled_from(["NFC", "NFD"]))
def test_ids_are_unique_file_names_and_splits_find_them(
    paths: list[PurePosixPath], form: str
) -> None:
    images = [PurePosixPath(unicodedata.normalize(form, f"{path}.nii.gz")) for path in paths]
    try:
        ids = case_ids_of(images, SOURCE)
    except DataError:  # such as a/b_c and a_b/c, see below
        return
    assert len(set(ids)) == len(ids) == len(paths)
    for case_id in ids:
        assert case_id
        assert "/" not in case_id
        assert matching_case(case_id, ids) == case_id
    if len({path.name for path in paths}) == len(paths):
        assert ids == [path.name for path in paths]
        assert [matching_case(str(image), ids) for image in images] == ids


@pytest.mark.parametrize(
    ("images", "ids"),
    [
        (["imagesTr/a.nii.gz", "imagesTr/b.nii"], ["a", "b"]),
        (["p01/ct.nii.gz", "p02/ct.nii.gz"], ["p01", "p02"]),
        (["p01/ct.nii.gz", "p02/ct.nii.gz", "p01/mr.nii.gz"], ["p01_ct", "p02_ct", "p01_mr"]),
        (["d/p01/t0/ct.nii", "d/p01/t1/ct.nii", "d/p02/t0/ct.nii"], ["p01_t0", "p01_t1", "p02_t0"]),
        (["ct.nii.gz", "p01/ct.nii.gz"], ["ct", "p01_ct"]),
    ],
)
def test_ids_are_readable(images: list[str], ids: list[str], tmp_path: Path) -> None:
    assert case_ids_of([PurePosixPath(name) for name in images], SOURCE) == ids
    parts = {"training": [{"image": f"./{images[0]}"}], "validation": [ids[1]]}
    rest = ids[2:] or ["other"]
    file = write_json(tmp_path / "split.json", parts | {"test": rest})
    assert split_from_file([*ids, "other"], file=file).training == (ids[0],)


def test_cases_that_cannot_be_told_apart_are_told() -> None:
    with pytest.raises(DataError, match=r"images a/b_c/x.nii and a_b/c/x.nii give two cases one"):
        case_ids_of([PurePosixPath("a/b_c/x.nii"), PurePosixPath("a_b/c/x.nii")], SOURCE)


@pytest.mark.parametrize("where", ["in the folder", "elsewhere"])
def test_a_data_set_of_links_keeps_its_names(tmp_path: Path, where: str) -> None:
    """As git-annex and DataLad clone one: each file is a link, named by the hash of its content."""
    root = touch_msd(tmp_path / "Task04", ["a", "b", "c"])
    store = root / ".git" / "annex" if where == "in the folder" else tmp_path / "annex"
    store.mkdir(parents=True)
    for index, path in enumerate(sorted(root.glob("*Tr/*"))):
        path.rename(store / f"MD5E-{index}.nii.gz")
        path.symlink_to(os.path.relpath(store / f"MD5E-{index}.nii.gz", path.parent))
    task = read_msd(root)
    assert list(task.cases) == ["a", "b", "c"]
    assert task.cases["a"].images == (root / "imagesTr" / "a.nii.gz",)
    messages = [finding.message for finding in task.findings if finding.kind == "links"]
    assert len(messages) == (where == "elsewhere")
    assert all("6 files are links out of the data set's folder" in message for message in messages)
    (store / "MD5E-0.nii.gz").unlink()
    with pytest.raises(DataError, match=r"a.nii.gz, a link to .*MD5E-0.nii.gz, which is not there"):
        read_msd(root)


def test_a_data_set_is_called_by_its_own_name_not_its_link_target(tmp_path: Path) -> None:
    store = touch_nnunet(tmp_path / "0a1b2c", ["a"])
    (tmp_path / "Dataset003_Liver").symlink_to(store)
    task = read_nnunet(tmp_path / "Dataset003_Liver")
    assert task.name == "Dataset003_Liver"
    assert not [finding for finding in task.findings if finding.kind == "links"]


@settings(derandomize=True, deadline=None)
@given(
    name=st.lists(st.sampled_from(["..", ".", "a", "imagesTr", "/", "\\", "C:"]), max_size=5).map(
        "/".join
    )
    | st.sampled_from(["..\\secret.nii", "C:\\secret.nii", "/secret.nii", "a/../../secret.nii"])
)
def test_no_name_leaves_the_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.getbasetemp() / "leave" / "root"
    (root / "imagesTr").mkdir(parents=True, exist_ok=True)
    for file in (root.parent / "secret.nii", root / "a", root / "imagesTr" / "a"):
        file.touch()
    try:
        path = inside(root, name, SOURCE)
    except DataError:
        return
    assert path.resolve().is_relative_to(root.resolve())
    assert path.is_file()


@pytest.mark.parametrize(("on_disk", "in_json"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_found_in_either_unicode_form(tmp_path: Path, on_disk: str, in_json: str) -> None:
    names = [f"Müller{i}é" for i in range(3)]
    root = touch_msd(tmp_path / "data", [unicodedata.normalize(in_json, name) for name in names])
    for path in list(root.glob("*Tr/*")):
        path.rename(path.with_name(unicodedata.normalize(on_disk, path.name)))
    task = read_msd(root)
    assert list(task.cases) == [unicodedata.normalize("NFC", name) for name in names]
    assert not task.findings  # none of the files counts as another one
    split = {
        part: [unicodedata.normalize("NFD", name)]
        for part, name in zip(("training", "validation", "test"), names, strict=True)
    }
    splits = split_from_file(task.cases, file=write_json(tmp_path / "split.json", split))
    assert splits.training == (unicodedata.normalize("NFC", names[0]),)


def test_names_with_backslashes_are_found(tmp_path: Path) -> None:
    root = touch_msd(tmp_path / "data", ["a", "b"])
    path = root / "dataset.json"
    path.write_text(path.read_text().replace("./imagesTr/", "imagesTr\\\\"))
    assert list(read_msd(root).cases) == ["a", "b"]
