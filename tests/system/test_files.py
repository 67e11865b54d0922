"""Atomic writes, checksums and full disks."""

import errno
from pathlib import Path

import pytest
import torch

from alseg.core.errors import DataError, StorageError
from alseg.system.files import (
    newest_intact,
    previous,
    read_json,
    read_tensors,
    replacing,
    write_atomically,
    write_json,
    write_tensors,
)


def test_every_changed_byte_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    write_tensors(path, {"a": torch.arange(6.0)})
    assert torch.equal(read_tensors(path)["a"], torch.arange(6.0))
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        changed = bytearray(good)
        changed[position] ^= 0x55
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"weights.ckpt is damaged"):
            read_tensors(path)
        path.write_bytes(good[:position])
        with pytest.raises(DataError, match=r"weights.ckpt is damaged"):
            read_tensors(path)


def test_others_read_the_tensors_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.pt", {"a": torch.ones(3)})
    assert torch.load(tmp_path / "a.pt", weights_only=True)["a"].sum() == 3


def test_a_changed_json_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"value": 1.5, "nan": float("nan")})
    assert read_json(path)["value"] == 1.5
    path.write_text(path.read_text().replace("1.5", "1.6"))
    with pytest.raises(DataError, match=r"a.json is damaged"):
        read_json(path)
    path.write_text('{"value": 2}')  # without a checksum: written by hand
    assert read_json(path) == {"value": 2}


def test_the_generation_before_stands_in(tmp_path: Path) -> None:
    path, messages = tmp_path / "a.json", list[str]()
    assert newest_intact(path, read_json, messages.append) is None
    write_json(previous(path), {"generation": 1})
    assert newest_intact(path, read_json, messages.append) == (previous(path), {"generation": 1})
    path.write_text("{")
    assert newest_intact(path, read_json, messages.append) == (previous(path), {"generation": 1})
    assert len(messages) == 1
    assert str(path) in messages[0]


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_full_disk_is_told_by_name_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(call, full)
    with pytest.raises(StorageError, match=r"cannot write .*a.json: No space left .*MiB are free"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_an_error_within_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with replacing(tmp_path / "a") as file:
            file.write(b"half")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        write_half()
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_text("of somebody else")
    monkeypatch.setattr("secrets.token_hex", lambda n: "guessed")  # which nobody can
    (tmp_path / ".tmp-guessed-a.json").symlink_to(foreign)
    with pytest.raises(StorageError, match=r"cannot write .*a.json: File exists"):
        write_json(tmp_path / "a.json", {"a": 1})
    assert foreign.read_text() == "of somebody else"


def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(tmp_path: Path) -> None:
    foreign, path = tmp_path / "foreign", tmp_path / "a.json"
    foreign.write_text("of somebody else")
    path.symlink_to(foreign)
    write_json(path, {"a": 1})
    assert foreign.read_text() == "of somebody else"
    assert read_json(path) == {"a": 1}
    assert not path.is_symlink()


def test_text_is_utf_8(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.txt", "Müller 肝")
    assert (tmp_path / "a.txt").read_bytes() == "Müller 肝".encode()
