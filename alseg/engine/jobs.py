"""Jobs in processes of their own that do not pay for the imports again.

A job that runs out of memory or crashes in native code ends itself and no other, and gives back all
its memory. Its process is forked from a server that has imported torch, Lightning and MONAI once
and done nothing else, so it starts in milliseconds instead of the seconds of CPU time that the
imports take.

Rejected: a job inside the sweep's own process, which a crash would end, and a new interpreter for
each job, which imports everything again.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from alseg.system.interruption import OF_SCHEDULERS, Interrupted

# They import all that a job needs, and start neither threads nor devices.
PRELOADED = ["alseg.engine.runs", "alseg.tracking.mlflow"]
_context = multiprocessing.get_context("forkserver")


def run_in_fork(
    function: Callable[[Path], None], folder: Path, take_line: Callable[[str], None]
) -> int:
    """Call ``function(folder)`` in a process of its own and wait for its end.

    The process is asked to end (SIGTERM) when this one has gone. A signal of a scheduler is passed
    on to it, and acted on here when it has saved what it has and ended: Slurm kills what is left of
    a job as soon as its first process has ended.

    Args:
        function: of a module, so that it can be named to another process.
        folder: what it works on.
        take_line: called with each line that the process prints.

    Returns:
        The exit code; negative for the signal that has killed the process.

    Raises:
        Interrupted: if this process was to end, and no handler of the signal was there to do it.
    """
    # whether there is a GPU is asked of the driver's library: CUDA does not survive a fork
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    _context.set_forkserver_preload(PRELOADED)
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8", errors="replace") as output:
        process = _context.Process(target=_work, args=(function, folder, _Output(writing)))
        with _signals_passed_on(process):
            process.start()
            os.close(writing)
            for line in output:
                take_line(line)
            process.join()
    assert process.exitcode is not None
    return process.exitcode


@contextmanager
def _signals_passed_on(process: BaseProcess) -> Iterator[None]:
    """Pass signals of schedulers on to a process, and receive them at the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals only to the main thread
        return
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    before = {number: signal.signal(number, receive) for number in OF_SCHEDULERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for signal_number in dict.fromkeys(received):
        signal.raise_signal(signal_number)
    if (
        received
    ):  # whoever has set those handlers continues: submitit's one for SIGTERM does nothing
        raise Interrupted(received[0])


def was_interrupted(exit_code: int) -> bool:
    """Whether a job's exit code says that a signal of a scheduler, or Ctrl-C, has ended it."""
    numbers = (signal.SIGINT, *OF_SCHEDULERS)
    return exit_code in {code for number in numbers for code in (-number, 128 + number)}


def is_job() -> bool:
    """Whether this process is one that ``run_in_fork`` has started."""
    return multiprocessing.parent_process() is not None


class _Output:
    """The end of a pipe that a process prints into; it can be handed to the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __getstate__(self) -> object:
        return multiprocessing.reduction.DupFd(self._descriptor)

    def __setstate__(self, state: object) -> None:
        self._descriptor = state.detach()  # type: ignore[attr-defined]

    def take_all(self) -> None:
        """Let all that this process prints go into the pipe."""
        for standard in (1, 2):
            os.dup2(self._descriptor, standard)
        os.close(self._descriptor)
        # new objects: the old ones may think that they write to a file, and seek in it
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)


def _work(function: Callable[[Path], None], folder: Path, output: _Output) -> None:
    output.take_all()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        function(folder)
    finally:
        atexit._run_exitfuncs()  # which processes of multiprocessing leave out


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for standard in (
        1,
        2,
    ):  # nobody reads the pipe: a line into it would end the step with an error
        os.dup2(nowhere, standard)
    os.kill(os.getpid(), signal.SIGTERM)  # it saves the step that it is in
