"""What all figures share: one look, ticks at labelled counts, text and legends that fit."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

from alseg.system.text import printable

# The page replaces them by the colour of its text and by nothing; no other part has them.
INK, PAPER = "#1b1b1f", "#fffffe"
FONT_SIZE = 10.5  # points, of all text
CHARACTER = 0.62 * FONT_SIZE / 72  # inches, a generous mean over the font's letters
LINE = 1.45 * FONT_SIZE / 72  # inches, from one line of a legend to the next

STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names from data sets are no formulas
    "svg.fonttype": "none",  # text stays text: searchable, and readable by screen readers
    "font.family": "sans-serif",
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "legend.fontsize": FONT_SIZE,
    "figure.titlesize": FONT_SIZE,
    "figure.labelsize": FONT_SIZE,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A figure in alseg's style (inches)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def wrapped(text: str, width: float) -> str:
    """A text in lines of at most ``width`` inches; what cannot be shown becomes an escape."""
    return textwrap.fill(printable(text), max(8, int(width / CHARACTER)))


def mark_counts(axes: Axes, counts: Sequence[float]) -> None:
    """Ticks at the labelled counts and nowhere else; as many of them as fit have their number.

    The first and the last always have.
    """
    marked = sorted(set(counts))
    axes.set_xticks(marked, minor=True)
    if not marked:
        axes.set_xticks([])
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    room = axes.get_position().width * figure.get_figwidth()  # before the layout, so roughly
    widest = (max(len(f"{count:g}") for count in marked) + 1) * CHARACTER
    apart = widest / room * (marked[-1] - marked[0])
    numbered = marked[:1]
    for count in marked[1:]:
        if count - numbered[-1] >= apart:
            numbered.append(count)
    while len(numbered) > 1 and 0 < marked[-1] - numbered[-1] < apart:
        numbered.pop()
    if numbered[-1] != marked[-1]:
        numbered.append(marked[-1])
    axes.set_xticks(numbered, [f"{count:g}" for count in numbered])


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """A legend below all axes; the figure grows by its height."""
    width, height = figure.get_size_inches()
    beside = 7 * CHARACTER  # the handle and the gaps
    lines = [wrapped(label, width - beside - 0.2) for label in labels]
    longest = max(len(line) for label in lines for line in label.splitlines() or [""])
    n_columns = max(1, min(len(lines), int(width / (longest * CHARACTER + beside))))
    n_rows = -(-len(lines) // n_columns)
    most_lines = max(label.count("\n") + 1 for label in lines)
    figure.legend(handles, lines, loc="outside lower center", ncols=n_columns)
    figure.set_size_inches(width, height + n_rows * most_lines * LINE)


def save_png(figure: Figure, path: Path | IO[bytes], dpi: int) -> None:
    """Write a figure as PNG; characters that the font lacks become escapes, not empty boxes."""
    with matplotlib.rc_context(STYLE):
        glyphs = get_font(findfont(FontProperties())).get_charmap()
        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            shown = "".join(
                c if c == "\n" or ord(c) in glyphs else ascii(c)[1:-1] for c in text.get_text()
            )
            if shown != text.get_text():
                text.set_text(shown)
                figure.set_layout_engine("constrained")
        figure.savefig(path, format="png", dpi=dpi)
