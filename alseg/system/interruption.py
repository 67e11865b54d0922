"""SIGTERM, Ctrl-C and preemption signals: where a run stops, and that it says how to continue.

All that a run writes is whole at any moment, so a signal may end it anywhere. In training it waits
for the end of the step, for then the step is saved as well; a second signal does not wait. Slurm
sends several signals at once, and to all processes of a job: those within a second count as one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from alseg.system.console import interrupt_line

# kill, a time limit, a preemption; Slurm's --signal=USR1@SECONDS; what submitit asks Slurm for
OF_SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SIGNALS = (signal.SIGINT, *OF_SCHEDULERS)  # the first is Ctrl-C
AT_ONCE_S = 1.0  # signals that follow each other faster than a person types count as one


class Interrupted(BaseException):
    """A signal has ended the run; no error, hence no Exception.

    Attributes:
        signal_number: of the signal.
        resume: the arguments that resume the run; empty if nothing can be resumed.
    """

    def __init__(self, signal_number: int, resume: str = "") -> None:
        super().__init__(f"interrupted by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number
        self.resume = resume

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it: 130, 143, 138, 140."""
        return 128 + self.signal_number


class Interruption:
    """What to do about the signals of this process.

    Attributes:
        requested: the signal that came while it was to wait.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._delayed = False
        self._process = 0
        self._since = 0.0  # when ``requested`` was set

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Raise ``Interrupted`` at a signal within the block."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python hands signals only to the main thread
            return
        self.requested, self._process = None, os.getpid()
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._process = 0

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """Only note a first signal within the block, which looks at ``requested`` now and then."""
        self._delayed = True
        try:
            yield
        finally:
            self._delayed = False
        if self.requested is not None:
            raise Interrupted(self.requested)

    def reinstall_handlers(self) -> None:
        """Receive the signals again after a library has put handlers of its own in place."""
        if self._process == os.getpid():
            for number in SIGNALS:
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader process: it ends with its parent
        if not self._delayed:
            raise Interrupted(number)
        if self.requested is not None:
            if time.monotonic() - self._since < AT_ONCE_S:
                return
            raise Interrupted(number)
        self.requested, self._since = number, time.monotonic()
        # not through logging or print: the signal may have come in the middle of one of them
        text = "alseg: stopping after this step; a second signal does not wait"
        os.write(2, interrupt_line(text))


interruption = Interruption()
