"""The readers of files that others write end well or in a defined error, whatever they are fed."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alseg.core.errors import AlsegError
from alseg.core.pool import Pool
from alseg.data.formats.msd import read_msd
from alseg.data.formats.nnunet import read_nnunet
from alseg.data.headers import check_headers
from alseg.data.splits import split_from_file
from alseg.data.volumes import read_volume
from alseg.run.state import RunState
from tests.checksums import write_signed
from tests.conftest import write_msd

bounded = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,  # CI must not fail by chance; a nightly run may take another seed
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["imagesTr/case_00.nii.gz", "labelsTr/case_00.nii.gz", "..", ".", "", "/", "~", "a\0", "\ud800"]
)


@st.composite
def damaged(draw: st.DrawFn, good: dict[str, Any]) -> str:
    """A good object with some entries, at any depth, replaced, dropped or doubled; as text."""
    content = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, 3))):
        node: Any = content
        while isinstance(node, (dict, list)) and node:
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
            if not isinstance(node[key], (dict, list)) or draw(st.booleans()):
                break
            node = node[key]
        if not isinstance(node, (dict, list)) or not node:
            continue
        action = draw(st.sampled_from(["replace", "name", "drop", "double"]))
        if action == "replace":
            node[key] = draw(JSON)
        elif action == "name":
            node[key] = draw(NAMES)
        elif action == "drop":
            del node[key]
        elif isinstance(node, list):
            node.append(node[key])
    text = json.dumps(content)
    cut = draw(st.integers(0, len(text))) if draw(st.integers(0, 9)) == 0 else len(text)
    return text[:cut]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = (6, 5, 4)
    volumes = [np.zeros(shape, np.float32)] * 3, [np.zeros(shape, np.uint8)] * 3
    return write_msd(tmp_path_factory.mktemp("fuzz") / "data", *volumes)


MSD = {
    "name": "Blobs",
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "blob"},
    "training": [
        {"image": f"./imagesTr/case_0{i}.nii.gz", "label": f"./labelsTr/case_0{i}.nii.gz"}
        for i in range(3)
    ],
}


@bounded
@given(text=damaged(MSD) | JSON.map(json.dumps) | st.text())
def test_any_dataset_json(root: Path, text: str) -> None:
    (root / "dataset.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        task = read_msd(root)
    except AlsegError:
        return
    assert task.cases
    assert len(set(task.classes)) == len(task.classes) >= 2
    for case in task.cases.values():
        assert all(path.is_relative_to(root) for path in (*case.images, case.label))


NNUNET = {
    "channel_names": {"0": "T1"},
    "labels": {"background": 0, "blob": 1},
    "file_ending": ".nii.gz",
}


@bounded
@given(text=damaged(NNUNET))
def test_any_nnunet_json(root: Path, text: str) -> None:
    (root / "dataset.json").write_text(text)
    for case in ("case_00", "case_01", "case_02"):
        link = root / "imagesTr" / f"{case}_0000.nii.gz"
        link.unlink(missing_ok=True)
        link.symlink_to(root / "imagesTr" / f"{case}.nii.gz")
    with contextlib.suppress(AlsegError):
        assert read_nnunet(root).cases


SPLIT = {"training": ["a", "b"], "validation": ["c"], "test": ["d", {"image": "x/e.nii.gz"}]}


@bounded
@given(text=damaged(SPLIT) | JSON.map(json.dumps))
def test_any_split_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    try:
        splits = split_from_file("abcde", file=path)
    except AlsegError:
        return
    ids = splits.training + splits.validation + splits.test
    assert len(set(ids)) == len(ids)
    assert set(ids) <= set("abcde")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("state")
    row = {"round": 1, "labelled": 2, "val_dice": 0.5}
    state = RunState(Pool(("a", "b"), ("c",)), "hash").after_round(
        Pool(("a", "b", "c"), ()), row, [{"round": 1, "case_id": "c", "score": 1.0}], row
    )
    state.save(folder)
    return dict(json.loads((folder / "state.json").read_text()))


@bounded
@given(data=st.data())
def test_any_state(tmp_path: Path, state: dict[str, Any], data: st.DataObject) -> None:
    write_signed(tmp_path / "state.json", data.draw(damaged(state) | JSON.map(json.dumps)))
    try:
        loaded = RunState.load(tmp_path)
    except AlsegError:
        return
    assert all(isinstance(case, str) for case in loaded.pool.labelled + loaded.pool.unlabelled)
    assert len(loaded.history) == loaded.finished_rounds


@pytest.fixture(scope="module")
def good(root: Path) -> bytes:
    return gzip.decompress((root / "imagesTr" / "case_01.nii.gz").read_bytes())


FIELD = st.tuples(
    st.integers(0, 351),
    st.binary(min_size=1, max_size=4)
    | st.sampled_from([b"\xff\xff", b"\x00\x00", b"\x00\x00\x80\x7f", b"\x00\x00\xc0\x7f"]),
)


@settings(bounded, max_examples=400)
@given(
    fields=st.lists(FIELD, min_size=1, max_size=4),
    end=st.none() | st.integers(0, 900),
    zipped=st.booleans(),
)
def test_any_nifti(
    root: Path, good: bytes, fields: list[tuple[int, bytes]], end: int | None, zipped: bool
) -> None:
    content = bytearray(good)
    for offset, value in fields:
        content[offset : offset + len(value)] = value
    data = bytes(content)[:end]
    (root / "dataset.json").write_text(json.dumps(MSD))
    task = read_msd(root)
    case = task.cases["case_00"]
    path = case.images[0] if zipped else root / "imagesTr" / "plain.nii"
    path.write_bytes(gzip.compress(data, 1) if zipped else data)
    try:
        if zipped:
            check_headers(task, ["case_00"], labels=True)
        volume = read_volume((path,))
    except AlsegError:
        return
    assert volume.numel() < 10**6
    assert np.isfinite(volume.affine.numpy()).all()
