import multiprocessing
import os

import pytest
import torch

from alseg.data.watched import WatchedDataset, dead_worker_error


class Cases:
    case_ids = ["a", "b"]  # noqa: RUF012

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return index


@pytest.fixture
def watched() -> WatchedDataset:
    """Two processes that have ended: one while it read ``b``, one after it had read ``a``."""
    watched = WatchedDataset(Cases(), 2)
    for row, (index, reading) in enumerate([(1, True), (0, False)]):
        process = multiprocessing.Process(target=os._exit, args=(0,))
        process.start()
        process.join()
        watched.notes[row] = torch.tensor([process.pid, index, reading])
    return watched


def test_torchs_own_message_is_understood(watched: WatchedDataset) -> None:
    (first, _, _), (second, _, _) = watched.readings()
    for pids, end, expected in (
        (f"pid {first}", "is killed by signal: Killed. ", "signal Killed while it was reading b;"),
        (
            f"pid {second}",
            "is killed by signal: Bus error. It",
            "Bus error while it was reading a;",
        ),
        (
            f"pid(s) {first}, {second}",
            "exited unexpectedly",
            "unexpectedly while it was reading a, b;",
        ),
        ("pid 1", "is killed by signal: Killed. ", "reading no case yet;"),
    ):
        error = RuntimeError(f"DataLoader worker ({pids}) {end}")
        assert expected in str(dead_worker_error(error, [watched]))


def test_a_broken_connection_is_a_death_if_a_reader_is_gone(watched: WatchedDataset) -> None:
    assert "died while it was reading b;" in str(
        dead_worker_error(ConnectionResetError(), [watched])
    )
    watched.notes[0, 2] = 0
    assert dead_worker_error(ConnectionResetError(), [watched]) is None
    assert dead_worker_error(RuntimeError("another"), [watched]) is None


def test_torch_may_speak_up_while_we_wait_for_the_process(
    watched: WatchedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torch_raises(process_id: int) -> bool:
        raise RuntimeError(f"DataLoader worker (pid {process_id}) is killed by signal: Killed. ")

    monkeypatch.setattr("alseg.data.watched._has_ended", torch_raises)
    assert "signal Killed while it was reading b;" in str(dead_worker_error(EOFError(), [watched]))


def test_nothing_is_noted_in_the_main_process() -> None:
    watched = WatchedDataset(Cases(), 1)
    assert watched[1] == 1
    assert watched.readings() == []
