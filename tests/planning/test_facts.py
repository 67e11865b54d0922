"""What is read of the images, and how little."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from alseg.core.errors import DataError
from alseg.data.formats.detected import read_detected
from alseg.data.formats.msd import read_msd
from alseg.data.splits import own_split, split_by_fraction
from alseg.data.volumes import Header
from alseg.planning import facts as reading
from alseg.planning.facts import by_axes, evenly_spaced, facts_of
from tests.conftest import write_msd


def data_set(root: Path, n: int = 5, channels: tuple[str, ...] = ("MRI",)) -> Path:
    """Images whose number is their intensity, of 4 + number voxels along the last axis."""
    shape = (len(channels),) if len(channels) > 1 else ()
    images = [np.full((6, 5, 4 + i, *shape), float(i), np.float32) for i in range(n)]
    labels = [np.ones((6, 5, 4 + i), np.uint8) for i in range(n)]
    return write_msd(root, images, labels, channels=channels)


def test_facts_are_of_the_cases_that_are_asked_for(tmp_path: Path) -> None:
    task = read_msd(data_set(tmp_path))
    found = facts_of(task, ["case_03", "case_01"])
    assert (found.name, found.n_images, found.n_sampled, found.n_classes) == ("Blobs", 2, 2, 2)
    assert found.shapes == ((6, 5, 5), (6, 5, 7))
    assert found.spacings_mm == ((1.0, 1.0, 1.0),) * 2
    (channel,) = found.channels
    assert (channel.name, channel.zero_share) == ("MRI", 0.0)
    assert 1.0 <= channel.low < channel.high <= 3.0
    assert facts_of(task, ["case_01", "case_03"]) == found


def test_each_channel_has_its_own_intensities(tmp_path: Path) -> None:
    images = [np.stack([np.zeros((4, 4, 4)), np.full((4, 4, 4), 9.0)], axis=-1)]
    root = write_msd(
        tmp_path, [images[0].astype(np.float32)], [np.ones((4, 4, 4), np.uint8)],
        channels=("T1", "T2"),
    )  # fmt: skip
    first, second = facts_of(read_msd(root), ["case_00"]).channels
    assert (first.name, first.median, first.zero_share) == ("T1", 0.0, 1.0)
    assert (second.name, second.median, second.zero_share) == ("T2", 9.0, 0.0)


def test_no_label_is_opened_and_no_more_voxels_than_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = data_set(tmp_path, n=9)
    task = read_msd(root)
    for label in (root / "labelsTr").iterdir():
        label.write_bytes(b"unreadable")
    monkeypatch.setattr(reading, "MAX_SAMPLED", 3)
    # voxels of the first, the middle and the last are sampled; of all others only headers are read
    for number in (1, 2, 3, 5, 6, 7):
        path = root / "imagesTr" / f"case_{number:02d}.nii.gz"
        image = nibabel.load(path)
        header_only = path.with_suffix("").with_suffix(".nii")
        nibabel.save(image, header_only)
        content = header_only.read_bytes()
        header_only.unlink()
        path.write_bytes(_gzip_with_a_damaged_end(content))
    found = facts_of(task, list(task.cases))
    assert found.n_sampled == 3
    assert len(found.shapes) == 9
    monkeypatch.setattr(reading, "MAX_SAMPLED", 9)
    with pytest.raises(DataError, match=r"case_01\.nii\.gz"):
        facts_of(task, list(task.cases))
    monkeypatch.setattr(reading, "MAX_SAMPLED_BYTES", 0)
    assert facts_of(task, list(task.cases)).n_sampled == 1
    monkeypatch.setattr(reading, "MAX_HEADERS", 2)
    assert facts_of(task, list(task.cases)).shapes == ((6, 5, 4), (6, 5, 12))


def _gzip_with_a_damaged_end(content: bytes) -> bytes:
    packed = bytearray(gzip.compress(content))
    packed[-6] ^= 255  # the checksum
    return bytes(packed)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = data_set(tmp_path)
    (root / "imagesTr" / "case_02.nii.gz").write_bytes(b"broken")
    task = read_msd(root)
    with pytest.raises(DataError, match=r"case_02\.nii\.gz"):
        facts_of(task, list(task.cases))


def test_items_are_evenly_spaced() -> None:
    assert evenly_spaced(list("abcdefghi"), 3) == ["a", "e", "i"]
    assert evenly_spaced(list("ab"), 3) == ["a", "b"]


def test_axes_are_those_of_the_body() -> None:
    # stored foot-head, left-right, back-front; the first of them downwards
    affine = np.array([[0, 2.0, 0, 0], [0, 0, 1.5, 0], [-9.0, 0, 0, 0], [0, 0, 0, 1]])
    header = Header((6, 24, 32), affine, np.dtype(np.int16), 0, ())
    assert by_axes(header) == ((24, 32, 6), (2.0, 1.5, 9.0))


def test_the_format_is_found_out(tmp_path: Path) -> None:
    assert "case_00" in read_detected(data_set(tmp_path / "msd")).cases
    with pytest.raises(DataError, match="is not a folder"):
        read_detected(tmp_path / "no")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        read_detected(tmp_path / "bad")


def test_the_data_sets_own_split_is_taken_where_there_is_one(tmp_path: Path) -> None:
    ids = [f"case_{n}" for n in range(20)]
    shares = {"validation": 0.15, "test": 0.2}
    by_share = split_by_fraction(ids, seed=0, **shares)
    assert own_split(ids, root=tmp_path, seed=0, **shares) == by_share
    assert own_split(ids, root=None, seed=0, **shares) == by_share
    (tmp_path / "split.json").write_text(
        '{"training": ["case_4"], "validation": ["case_2"], "test": ["case_9"]}'
    )
    own = own_split(ids, root=tmp_path, seed=0, **shares)
    assert (own.training, own.validation, own.test) == (("case_4",), ("case_2",), ("case_9",))
    (tmp_path / "split.json").write_text('{"training": ["case_4"]}')
    with pytest.raises(DataError, match="'validation' must be a list"):
        own_split(ids, root=tmp_path, seed=0, **shares)
