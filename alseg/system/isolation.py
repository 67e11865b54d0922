"""Work on untrusted input in processes of its own: one that dies takes one item with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch


@dataclass(frozen=True)
class Died:
    """What became of the process that worked on an item, as a person would say it."""

    end: str


def map_in_processes(
    function: Callable[[str], Any], items: Iterable[str], n_processes: int
) -> Iterator[tuple[str, Any]]:
    """Apply a function to items in several processes.

    Rejected: ``ProcessPoolExecutor``. Where one of its processes is killed, it throws away all
    items and does not say on which one the process was working.

    Args:
        function: of one item; it and its results can be pickled.
        items: what to work on.
        n_processes: how many work side by side.

    Yields:
        Item and result, in the order in which they are done; the result is ``Died`` where the
        process did not survive.
    """
    waiting = list(reversed(list(items)))
    busy: dict[Connection, tuple[Any, str]] = {}
    idle: list[tuple[Connection, Any]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < n_processes:
                connection, process = idle.pop() if idle else _start(function)
                item = waiting.pop()
                connection.send(item)
                busy[connection] = (process, item)
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                process, item = busy.pop(ready)
                try:
                    result = ready.recv()
                except EOFError:
                    process.join()
                    result = Died(exit_in_words(process.exitcode))
                else:
                    idle.append((ready, process))
                yield item, result
    finally:
        for connection, process in [*idle, *((c, p) for c, (p, _) in busy.items())]:
            connection.close()
            process.terminate()
            process.join()


def n_usable_cores() -> int:
    """The cores that this process may use; all of the machine's where that is not known."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def exit_in_words(code: int) -> str:
    """An exit code of a process, negative for a signal, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _start(function: Callable[[str], Any]) -> tuple[Connection, Any]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_serve, args=(there, function), daemon=True)
    process.start()
    there.close()  # so that only the child holds it, and its death is the end of the pipe
    return here, process


def _serve(connection: Connection, function: Callable[[str], Any]) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    parent = os.getppid()
    while True:
        # A parent that was killed does not close the pipe: the other children hold it too.
        while not connection.poll(1):
            if os.getppid() != parent:
                os._exit(1)
        connection.send(function(connection.recv()))
