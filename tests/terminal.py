"""Runs a command as a person does: in a pseudo-terminal, whose screen can be read."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

import pyte


@dataclass(frozen=True)
class Session:
    """What a command left in its terminal.

    Attributes:
        exit_code: of the command.
        raw: the bytes that it wrote.
        lines: what a person sees when scrolling back, without trailing blanks.
    """

    exit_code: int
    raw: bytes
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def run_in_terminal(
    *arguments: str,
    folder: Path,
    columns: int = 80,
    term: str = "xterm-256color",
    type_after: tuple[str, str] | None = None,
    seconds: float = 300.0,
    environment: dict[str, str] | None = None,
) -> Session:
    """Run ``python ARGUMENTS`` in a pseudo-terminal.

    Args:
        arguments: of the interpreter, such as ``-m alseg.train``.
        folder: the working folder.
        columns: of the terminal.
        term: the variable TERM; ``dumb`` is a terminal without cursor movements.
        type_after: a text to wait for, and what is typed once it is there ("\x03" is Ctrl-C).
        seconds: the time limit.
        environment: further variables.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "CI")}
    child = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=inherited | {"TERM": term} | (environment or {}),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
    )
    os.close(slave)
    raw = b""
    deadline = time.monotonic() + seconds
    try:
        while True:
            if time.monotonic() > deadline:
                child.kill()
                raise AssertionError(f"still running after {seconds} s: {raw[-2000:]!r}")
            if not select.select([master], [], [], 0.2)[0]:
                continue
            try:
                chunk = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            raw += chunk
            if type_after is not None and type_after[0].encode() in raw:
                os.write(master, type_after[1].encode())
                type_after = None
        exit_code = child.wait(timeout=120)
    finally:
        os.close(master)
    return Session(exit_code, raw, _seen(raw, columns))


def _seen(raw: bytes, columns: int) -> list[str]:
    screen = pyte.Screen(columns, 5000)  # so long that nothing scrolls out of it
    pyte.ByteStream(screen).feed(raw)
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines
