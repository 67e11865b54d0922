import multiprocessing
import os

import pytest
import torch

from alseg.data.noted import Noted, loader_death


class Cases:
    case_ids = ["a", "b"]  # noqa: RUF012

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return index


@pytest.fixture
def noted() -> Noted:
    """Two processes that have ended: one while it read ``b``, one after it had read ``a``."""
    noted = Noted(Cases(), 2)
    for row, (index, reading) in enumerate([(1, True), (0, False)]):
        process = multiprocessing.Process(target=os._exit, args=(0,))
        process.start()
        process.join()
        noted.notes[row] = torch.tensor([process.pid, index, reading])
    return noted


def test_torchs_own_message_is_understood(noted: Noted) -> None:
    (first, _, _), (second, _, _) = noted.readings()
    for pids, how, told in (
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
        error = RuntimeError(f"DataLoader worker ({pids}) {how}")
        assert told in str(loader_death(error, [noted]))


def test_a_broken_connection_is_a_death_if_a_reader_is_gone(noted: Noted) -> None:
    assert "died while it was reading b;" in str(loader_death(ConnectionResetError(), [noted]))
    noted.notes[0, 2] = 0
    assert loader_death(ConnectionResetError(), [noted]) is None
    assert loader_death(RuntimeError("another"), [noted]) is None


def test_torch_may_speak_up_while_we_wait_for_the_process(
    noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told_by_torch(process_id: int) -> bool:
        raise RuntimeError(f"DataLoader worker (pid {process_id}) is killed by signal: Killed. ")

    monkeypatch.setattr("alseg.data.noted._has_ended", told_by_torch)
    assert "signal Killed while it was reading b;" in str(loader_death(EOFError(), [noted]))


def test_nothing_is_noted_in_the_main_process() -> None:
    noted = Noted(Cases(), 1)
    assert noted[1] == 1
    assert noted.readings() == []
