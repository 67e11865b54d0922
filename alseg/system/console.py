"""What a person sees: log lines, bars and tables on one console, so that none overwrites another.

In a terminal, work in progress has a bar that vanishes when the work is done. Elsewhere (a file, a
pipe, a job of a sweep, a terminal without cursor movements) it has a log line now and then.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from types import TracebackType
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from alseg.system.secrets import without_secrets

T = TypeVar("T")

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_FRAMES = 0.2


@cache
def console() -> Console:
    """The console.

    Made when it is first used: where a job's process is forked, its output is not yet the job's.
    """
    return Console(highlight=False)


_bars: list[Progress] = []  # what is drawn now: at most one bar, the others would have its place


class ConsoleHandler(logging.Handler):
    """Prints log lines on the console, above the bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a log line, in one piece whatever the width."""
        try:
            say(self.format(record))
        except Exception:  # logging's own rule: a line that cannot be printed stops no run
            self.handleError(record)


def animated() -> bool:
    """Whether the output is a terminal in which a bar can move."""
    return console().is_terminal and not console().is_dumb_terminal


def say(text: str) -> None:
    """Print text as it is, except for secrets; paths and commands stay in one piece to copy."""
    console().print(Text(without_secrets(text)), soft_wrap=True)


def has_display() -> bool:
    """Whether a browser can be opened on this machine's screen."""
    return sys.platform != "linux" or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )


class _Bar(Progress):
    """A bar that leaves room in its line for the ``^C`` that a terminal shows."""

    def get_renderable(self) -> RenderableType:
        return Constrain(super().get_renderable(), console().width - 3)


class Meter:
    """Shows how far a piece of work is, and the time that is left.

    Args:
        title: what the work is for, such as ``round 2/4 · 10 labelled``.
        unit: what is counted, such as ``step`` or ``scored``.
        total: how many there are.
        done: how many were done before, by an earlier process.
        shown: False for no display at all, as on all except the first of several devices.
    """

    def __init__(
        self, title: str, unit: str, total: int, *, done: int = 0, shown: bool = True
    ) -> None:
        self.title, self.unit, self.total = title, unit, total
        self._first = self.done = done
        self._started = self._shown_at = time.monotonic()
        self._shown = shown
        self._bar: Progress | None = None
        if shown and animated() and not _bars:
            # No thread of its own: loader processes are forked, and a lock held then stays locked.
            self._bar = _Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[state]}", markup=False),
                console=console(),
                auto_refresh=False,
                transient=True,
                expand=True,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, state="")
            self._bar.start()
            _bars.append(self._bar)

    def update(self, done: int, detail: Callable[[], str] = str) -> None:
        """Show how many are done; costs nothing between two frames.

        Args:
            done: how many.
            detail: more to say, such as the loss; called only if it is shown.
        """
        self.done = done
        now = time.monotonic()
        between = SECONDS_BETWEEN_FRAMES if self._bar is not None else SECONDS_BETWEEN_LINES
        if not self._shown or now - self._shown_at < between:
            return
        self._shown_at = now
        parts = [f"{self.unit} {done}/{self.total}", detail(), f"{self.time_left()} left"]
        state = " · ".join(part for part in parts if part)
        if self._bar is None:
            log.info(f"{self.title} · {state}")
        else:
            self._bar.update(self._task, completed=done, state=state)
            self._bar.refresh()

    def time_left(self) -> str:
        """The time that the rest takes at the speed so far."""
        counted = self.done - self._first
        if not counted:
            return "some time"
        seconds = time.monotonic() - self._started
        return duration(seconds / counted * (self.total - self.done))

    @property
    def seconds(self) -> float:
        """How long the work has taken so far."""
        return time.monotonic() - self._started

    def close(self) -> None:
        """Remove the bar; safe to call twice."""
        if self._bar is not None:
            remove_bar()
            self._bar = None
        self._shown = False

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def track(
    items: Iterable[T], title: str, unit: str, total: int, *, shown: bool = True
) -> Iterator[T]:
    """Yield the items, showing how many have been dealt with; see ``Meter``."""
    with Meter(title, unit, total, shown=shown) as meter:
        for done, item in enumerate(items, start=1):
            yield item
            meter.update(done)


def remove_bar() -> None:
    """Remove the bar of work that has ended in an error or a signal, and show the cursor again."""
    while _bars:
        _bars.pop().stop()


def fits(table: Table) -> bool:
    """Whether a table's columns have their full width on the console."""
    unlimited = console().options.update(max_width=10_000)
    return Measurement.get(console(), unlimited, table).maximum <= console().width


def duration(seconds: float) -> str:
    """Seconds as people read them: ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def file_size(n_bytes: int) -> str:
    """Bytes as people read them: ``340 kB``, ``12.3 MB``, ``1.2 GB``."""
    if n_bytes < 10**6:
        return f"{n_bytes / 1e3:.0f} kB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes < 10**9 else f"{n_bytes / 1e9:.1f} GB"


def interrupt_line(text: str) -> bytes:
    """A line for a signal handler to write: takes the place of the bar, where there is one."""
    start = "\r\x1b[2K" if sys.stderr.isatty() and animated() else ""
    return f"{start}{text}\n".encode()
