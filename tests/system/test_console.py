"""Progress off a terminal; tests/commands/test_in_a_terminal.py has the bars."""

from __future__ import annotations

import logging

import pytest
from rich.table import Table

from alseg.system import console
from alseg.system.console import Meter, duration, file_size, fits, track


def test_off_a_terminal_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = iter([100.0, 105.0, 140.0, 140.0, 145.0])  # start, 5 s (no line), 40 s (a line), 45 s
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    with caplog.at_level(logging.INFO), Meter("round 1/4", "step", 100, done=20) as meter:
        meter.update(30)
        meter.update(60, lambda: "loss 0.500")
        meter.update(70)
    # 40 steps in 40 s, 40 are left
    assert caplog.messages == ["round 1/4 · step 60/100 · loss 0.500 · 40 s left"]


def test_a_hidden_meter_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO):
        assert list(track("abc", "reading", "file", 3, shown=False)) == ["a", "b", "c"]
        assert not caplog.messages
        assert list(track("abc", "reading", "file", 3)) == ["a", "b", "c"]
    assert [message.split(" · ")[1] for message in caplog.messages] == [
        "file 1/3",
        "file 2/3",
        "file 3/3",
    ]


def test_a_table_fits_if_no_column_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    console.console.cache_clear()
    narrow, wide = Table(), Table()
    narrow.add_column("n" * 76, no_wrap=True)  # a border and a blank on each side
    wide.add_column("w" * 77, no_wrap=True)
    assert fits(narrow)
    assert not fits(wide)
    console.console.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 kB"), (340_000, "340 kB"), (12_345_678, "12.3 MB"), (1_200_000_000, "1.2 GB")],
)
def test_sizes_are_readable(n_bytes: int, text: str) -> None:
    assert file_size(n_bytes) == text
