"""The figures of a comparison, for light and dark pages alike."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from alseg.comparison.forecast import MAX_EXTRAPOLATION, Forecast
from alseg.comparison.statistics import Ranking, mean_curves, reliability

# The page replaces them by the colour of its text and by nothing; no other part has them.
INK, PAPER = "#1b1b1f", "#fffffe"
# Okabe and Ito's colours, distinct for colour-blind readers, the strongest first
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_BANDS = 4  # in one plot; more of them hide each other
SEQUENTIAL = LinearSegmentedColormap.from_list("blues", ["#e8f1f8", "#0072b2", "#003f66"])
QUERY_ROUNDS = LinearSegmentedColormap.from_list("rounds", ["#003f66", "#0072b2", "#b3d4ea"])

STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names from run folders are no formulas
    "svg.fonttype": "none",  # text stays text: searchable, and readable by screen readers
    "font.family": "sans-serif",
    "font.size": 12,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 11,
}


@dataclass(frozen=True)
class Palette:
    """Colour and marker of each strategy, the same in all figures; the reference is in ink.

    Args:
        strategies: all names.
        reference: the one that others are compared with.
        labels: how each is called in a legend.
    """

    strategies: Sequence[str]
    reference: str
    labels: Mapping[str, str]

    def style(self, strategy: str) -> dict[str, Any]:
        """The line style of a strategy, for ``Axes.plot``."""
        if strategy == self.reference:
            return {"color": INK, "marker": "o", "ls": "--", "mfc": "none"}
        index = [s for s in self.strategies if s != self.reference].index(strategy)
        style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        return style | {"ls": ("-", "-.", ":")[index // len(COLOURS) % 3]}

    def has_band(self, strategy: str) -> bool:
        """Whether its interval is drawn among the others': of many strategies the reference's."""
        return len(self.strategies) <= MOST_BANDS or strategy == self.reference


@contextmanager
def canvas(width: float, height: float, **settings: Any) -> Iterator[Figure]:
    """A figure in the comparison's style (inches)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", **settings)
        FigureCanvasAgg(figure)
        yield figure


def learning_curves(
    curves: pd.DataFrame,
    full: pd.DataFrame,
    palette: Palette,
    value: str = "test_dice",
    budget: str = "labelled",
    label: str = "labelled volumes",
) -> Figure:
    """Mean Dice against the budget, with 95% intervals and the full-data line.

    Seeds are averaged at equal labelled counts, whatever the budget's unit: costs of one count
    differ between seeds.
    """
    with canvas(6.4, 4.6) as figure:
        axes = figure.add_subplot()
        _draw_curves(axes, mean_curves(curves, value), palette, budget)
        _draw_full(axes, full, value)
        axes.set(xlabel=label, ylabel="test Dice")
        _legend_below(figure, axes)
        return figure


def class_curves(
    curves: pd.DataFrame, full: pd.DataFrame, palette: Palette, classes: Sequence[str]
) -> Figure:
    """Learning curves of each foreground class, one panel a class."""
    with canvas(6.4, 3.2 * len(classes) + 0.8) as figure:
        panels = figure.subplots(len(classes), squeeze=False, sharex=True)[:, 0]
        for axes, name in zip(panels, classes, strict=True):
            value = f"test_dice_{name}"
            _draw_curves(axes, mean_curves(curves, value), palette, "labelled")
            _draw_full(axes, full, value)
            axes.set(title=name, ylabel="test Dice")
        panels[-1].set_xlabel("labelled volumes")
        _legend_below(figure, panels[0])
        return figure


def _draw_curves(axes: Axes, means: pd.DataFrame, palette: Palette, budget: str) -> None:
    for strategy, rows in means.groupby("strategy"):
        style = palette.style(strategy) | {"label": palette.labels[strategy]}
        _draw_line(axes, rows, budget, "mean", style, band=palette.has_band(str(strategy)))
    axes.grid()


def _draw_line(
    axes: Axes, rows: pd.DataFrame, x: str, y: str, style: dict[str, Any], *, band: bool = True
) -> None:
    """A line of one strategy, in the band from ``low`` to ``high``."""
    axes.plot(rows[x], rows[y], lw=2, **style)
    if band:
        axes.fill_between(
            rows[x], rows["low"], rows["high"], color=style["color"], alpha=0.15, lw=0
        )


def _draw_full(axes: Axes, full: pd.DataFrame, value: str) -> None:
    if not full.empty:
        line = axes.axhline(full[value].mean(), color=INK, lw=1.2, ls=":")
        line.set_label(f"all {full['labelled'].iloc[0]} volumes")


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels)) > 32 else 2 if max(map(len, labels)) > 14 else 3
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def paired_differences(differences: pd.DataFrame, palette: Palette) -> Figure:
    """Paired difference from the reference at each labelled count, with 95% intervals.

    One panel a strategy, all on the same axes.
    """
    strategies = sorted(differences["strategy"].unique())
    n_columns = min(2, len(strategies))
    n_rows = math.ceil(len(strategies) / n_columns)
    with canvas(6.4, 0.8 + 1.9 * n_rows) as figure:
        grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
        panels = grid.ravel().tolist()
        for axes, strategy in zip(panels, strategies, strict=False):
            rows = differences[differences["strategy"] == strategy]
            axes.axhline(0, color=INK, lw=1.2, ls="--")
            _draw_line(axes, rows, "labelled", "difference", palette.style(strategy))
            axes.set_title(palette.labels[strategy])
            axes.grid()
        for axes in panels[len(strategies) :]:
            axes.set_axis_off()
        for axes in panels[:-n_columns]:  # an empty panel below has no labels
            axes.tick_params(labelbottom=axes in panels[len(strategies) - n_columns :])
        figure.supxlabel("labelled volumes")
        figure.supylabel(f"Dice minus {palette.labels[palette.reference]}")
        return figure


def critical_difference(ranking: Ranking, labels: Mapping[str, str]) -> Figure:
    """Critical-difference diagram (Demšar 2006): bars join strategies that cannot be told apart."""
    ranks = ranking.mean_ranks
    groups = cliques(ranks.tolist(), ranking.critical_difference)
    bottom = -(len(groups) + len(ranks)) - 0.8
    with canvas(6.4, 0.34 * (2.8 - bottom)) as figure:
        axes = figure.add_subplot()
        axes.set(xlim=(0.6, len(ranks) + 0.4), ylim=(bottom, 2.6))
        axes.set_axis_off()
        axes.plot([1, len(ranks)], [0, 0], color=INK, lw=1.2)
        for rank in range(1, len(ranks) + 1):
            axes.plot([rank, rank], [0, 0.2], color=INK, lw=1.2)
            axes.text(rank, 0.35, str(rank), ha="center")
        width = min(ranking.critical_difference, len(ranks) - 1)
        axes.plot([1, 1 + width], [1.5, 1.5], color=INK, lw=2)
        cut = " (cut)" if width < ranking.critical_difference else ""
        axes.text(
            1, 1.7, f"critical difference {ranking.critical_difference:.2f}{cut}", fontsize=11
        )
        for index, (first, last) in enumerate(groups):
            span = [ranks.iloc[first] - 0.05, ranks.iloc[last] + 0.05]
            axes.plot(span, [-0.6 - index] * 2, color="#d55e00", lw=4, solid_capstyle="butt")
        for index, (name, rank) in enumerate(ranks.items()):
            y = -len(groups) - 0.6 - index
            axes.plot([rank, rank], [0, y], color=INK, lw=0.9)
            on_left = rank > (len(ranks) + 1) / 2
            axes.annotate(
                f"{labels[str(name)]} ({rank:.2f})",
                (rank, y), xytext=(-4 if on_left else 4, 0), textcoords="offset points",
                ha="right" if on_left else "left", va="center", fontsize=11,
            )  # fmt: skip
        return figure


def cliques(ranks: Sequence[float], critical_difference: float) -> list[tuple[int, int]]:
    """Maximal groups of sorted mean ranks that span at most the critical difference.

    Returns:
        (first, last) index of each group of at least two, no group within another.
    """
    groups: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(i for i, r in enumerate(ranks) if r - rank <= critical_difference)
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return groups


def penalty_heat_map(matrix: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Heat map of the penalty matrix: the share of budgets where the row beats the column."""
    names = [labels[name] for name in matrix.index]
    side = 0.62 * len(names) + 2.2
    with canvas(max(side + 1.2, 5.0), max(side, 3.6)) as figure:
        axes = figure.add_subplot()
        values = matrix.to_numpy(copy=True)
        np.fill_diagonal(values, np.nan)
        mesh = axes.pcolormesh(values, cmap=SEQUENTIAL, vmin=0, vmax=1, edgecolor="white", lw=1)
        for (row, column), value in np.ndenumerate(values):
            if row != column:
                axes.text(
                    column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center",
                    fontsize=10, color="white" if value > 0.3 else "#111111",
                )  # fmt: skip
        centres = np.arange(len(names)) + 0.5
        axes.set_xticks(centres, names, rotation=35, ha="right")
        axes.set_yticks(centres, names)
        axes.invert_yaxis()
        axes.set(xlabel="... is beaten by the row", ylabel="this strategy wins", aspect="equal")
        figure.colorbar(mesh, ax=axes, label="share of budgets", shrink=0.8)
        return figure


def query_heat_map(queries: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Which cases each run acquired in which round; one column a run, one row a case."""
    wide = queries.pivot(index="case_id", columns=["strategy", "seed"], values="round")
    wide = wide.sort_index(axis=1)
    # first what was acquired early and by many
    order = wide.fillna(queries["round"].max() + 1).mean(axis=1).sort_values(kind="stable").index
    wide = wide.loc[order]
    row_height = 0.2 if len(wide) <= 45 else 8.0 / len(wide)
    last = int(queries["round"].max())
    colours = QUERY_ROUNDS.resampled(last + 1)
    with canvas(6.4, row_height * len(wide) + 2.2) as figure:
        axes = figure.add_subplot()
        mesh = axes.pcolormesh(
            wide.to_numpy(dtype=float), cmap=colours, vmin=-0.5, vmax=last + 0.5,
            edgecolor="white", lw=0.4 if len(wide) <= 45 else 0,
        )  # fmt: skip
        if len(wide) <= 45:
            axes.set_yticks(np.arange(len(wide)) + 0.5, [str(c) for c in wide.index], fontsize=8)
        else:
            axes.set(yticks=[], ylabel=f"{len(wide)} cases, early and frequent ones on top")
        strategies = wide.columns.get_level_values("strategy")
        names = list(dict.fromkeys(strategies))
        starts = [int(np.argmax(strategies == name)) for name in names]
        ends = [*starts[1:], len(strategies)]
        middles = [(start + end) / 2 for start, end in zip(starts, ends, strict=True)]
        axes.set_xticks(middles, [labels[name] for name in names], rotation=25, ha="right")
        for start in starts[1:]:
            axes.axvline(start, color=INK, lw=1.5)
        axes.invert_yaxis()
        bar = figure.colorbar(mesh, ax=axes, ticks=range(last + 1))
        bar.set_label("acquired after round (0: initial)")
        return figure


def forecast_figure(
    curves: pd.DataFrame, forecasts: Sequence[Forecast], palette: Palette, value: str = "test_dice"
) -> Figure:
    """The fitted learning curves beyond the rounds so far, with the target."""
    fitted = [f for f in forecasts if f.fit is not None]
    reached = [f.volumes for f in fitted if f.volumes is not None]
    largest = float(curves["labelled"].max())
    end = min(MAX_EXTRAPOLATION * largest, max([1.5 * largest, *(1.15 * v for v in reached)]))
    n = np.linspace(float(curves["labelled"].min()), end, 200)
    with canvas(6.4, 4.4) as figure:
        axes = figure.add_subplot()
        for item in fitted:
            assert item.fit is not None
            style = palette.style(item.strategy)
            means = mean_curves(curves[curves["strategy"] == item.strategy], value)
            axes.plot(n, item.fit.predict(n), lw=1.5, color=style["color"], ls=style["ls"])
            axes.plot(
                means["labelled"], means["mean"], ls="none", marker=style["marker"],
                color=style["color"], label=palette.labels[item.strategy],
            )  # fmt: skip
        target = fitted[0].target
        axes.axhline(target, color=INK, lw=1, ls=":", label=f"target {target:.3f}")
        axes.axvspan(largest, end, color="#808080", alpha=0.08, lw=0)
        axes.set(xlabel="labelled volumes", ylabel="test Dice", xlim=(n[0] * 0.9, end))
        axes.grid()
        _legend_below(figure, axes)
        return figure


def calibration_figure(histograms: pd.DataFrame, palette: Palette) -> Figure:
    """Reliability of predicted probabilities, one panel a round."""
    bins = reliability(histograms)
    rounds = sorted(bins["round"].unique())
    with canvas(6.4, 3.0 * -(-len(rounds) // 2) + 0.8) as figure:
        panels = figure.subplots(-(-len(rounds) // 2), 2, squeeze=False, sharex=True, sharey=True)
        for axes in panels.flat[len(rounds) :]:
            axes.set_visible(False)
        for axes, number in zip(panels.flat, rounds, strict=False):
            axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":")
            for strategy, rows in bins[bins["round"] == number].groupby("strategy"):
                style = palette.style(strategy) | {"ms": 4}
                rows = rows.sort_values("confidence")
                axes.plot(
                    rows["confidence"], rows["accuracy"], label=palette.labels[strategy], **style
                )
            axes.set(title=f"round {number}", xlabel="confidence", ylabel="accuracy")
            axes.label_outer()
            axes.grid()
        _legend_below(figure, panels[0, 0])
        return figure


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write NAME.png and NAME.svg; returns the SVG for a page."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(folder / f"{name}.png", dpi=150)
        figure.set_layout_engine("none")  # it is laid out; doing so again takes most of the time
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    document = stream.getvalue()
    (folder / f"{name}.svg").write_text(document, encoding="utf-8")
    return inline_svg(document, name)


def inline_svg(document: str, name: str) -> str:
    """An SVG document as an element of a page: own ids, no declarations, the page's colours."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix: Callable[[re.Match[str]], str] = lambda m: f"{m[1]}{name}-{m[2]}"  # noqa: E731
    svg = re.sub(r'(\sid=")([^"]+)', prefix, svg)
    svg = re.sub(r'(href="#)([^"]+)', prefix, svg)
    svg = re.sub(r"(url\(#)([^)]+)", prefix, svg)
    return svg.replace(INK, "currentColor").replace(f"fill: {PAPER}", "fill: none")
