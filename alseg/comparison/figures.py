"""The figures of a comparison, for light and dark pages alike, wide ones and narrow ones.

Each is drawn for a width in inches, in which its text has the size of the page's.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from alseg.comparison.query_places import PLACES
from alseg.comparison.statistics import Ranking, mean_curves, reliability
from alseg.curves.forecast import MAX_EXTRAPOLATION, Forecast
from alseg.system.plotting import (
    CHARACTER,
    INK,
    LINE,
    PAPER,
    STYLE,
    canvas,
    legend_below,
    mark_counts,
    save_png,
    wrapped,
)
from alseg.system.text import printable

# The page's columns on a desk and on a phone, inches of 96 pixels
WIDE, NARROW = 10.0, 3.75
# Okabe and Ito's colours, distinct for colour-blind readers, the strongest first
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_BANDS = 4  # in one plot; more of them hide each other
MOST_NAMED_CASES = 45  # in the heat map of the queries
SEQUENTIAL = LinearSegmentedColormap.from_list("blues", ["#e8f1f8", "#0072b2", "#003f66"])
QUERY_ROUNDS = LinearSegmentedColormap.from_list("rounds", ["#003f66", "#0072b2", "#b3d4ea"])


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


def learning_curves(
    curves: pd.DataFrame,
    full: pd.DataFrame,
    palette: Palette,
    width: float,
    value: str = "dice",
    budget: str = "labelled",
    label: str = "labelled volumes",
    dice_label: str = "test Dice",
) -> Figure:
    """Mean Dice against the budget, with 95% intervals and the full-data line.

    Seeds are averaged at equal labelled counts, whatever the budget's unit: costs of one count
    differ between seeds.
    """
    with canvas(width, _height(width)) as figure:
        axes = figure.add_subplot()
        lines = _draw_curves(axes, mean_curves(curves, value), palette, budget)
        lines |= _draw_full(axes, full, value)
        axes.set(xlabel=label, ylabel=dice_label)
        if budget == "labelled":
            mark_counts(axes, curves["labelled"].tolist())
        legend_below(figure, list(lines.values()), list(lines))
        return figure


def class_curves(
    curves: pd.DataFrame,
    full: pd.DataFrame,
    palette: Palette,
    width: float,
    classes: Sequence[str],
    dice_label: str = "test Dice",
    label: str = "labelled volumes",
) -> Figure:
    """Learning curves of each foreground class, one panel a class."""
    n_columns = min(len(classes), max(1, int(width / 3.2)))
    n_rows = math.ceil(len(classes) / n_columns)
    with canvas(width, 2.7 * n_rows) as figure:
        lines: dict[str, Line2D] = {}
        for axes, name in zip(
            _panels(figure, len(classes), n_columns, label), classes, strict=True
        ):
            value = f"dice_{name}"
            lines |= _draw_curves(axes, mean_curves(curves, value), palette, "labelled")
            lines |= _draw_full(axes, full, value)
            axes.set_title(wrapped(name, 0.8 * width / n_columns))
            mark_counts(axes, curves["labelled"].tolist())
        figure.supylabel(dice_label)
        legend_below(figure, list(lines.values()), list(lines))
        return figure


def _height(width: float) -> float:
    """The height of a plot of one panel, in inches."""
    return min(4.4, 0.85 * width)


def _panels(
    figure: Figure, n_panels: int, n_columns: int, label: str, *, same_axes: bool = False
) -> list[Axes]:
    """Panels row by row; those without one below have the x axis's label and numbers."""
    n_rows = math.ceil(n_panels / n_columns)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=same_axes, sharey=same_axes)
    panels = grid.ravel().tolist()
    for axes in panels[n_panels:]:
        axes.set_axis_off()
    for axes in panels[max(0, n_panels - n_columns) : n_panels]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(label)
    return panels[:n_panels]


def _draw_curves(
    axes: Axes, means: pd.DataFrame, palette: Palette, budget: str
) -> dict[str, Line2D]:
    """Draw a line a strategy; returns them by label, which says where one has fewer seeds."""
    lines = {}
    most_seeds = means["n_seeds"].max()
    for strategy, rows in means.groupby("strategy"):
        style, name = palette.style(strategy), palette.labels[strategy]
        if (n_seeds := rows["n_seeds"].max()) < most_seeds:
            name = f"{name}, {n_seeds} of {most_seeds} seeds"
        lines[name] = _draw_line(
            axes, rows, budget, "mean", style, band=palette.has_band(str(strategy))
        )
    axes.grid()
    return lines


def _draw_line(
    axes: Axes, rows: pd.DataFrame, x: str, y: str, style: dict[str, Any], *, band: bool = True
) -> Line2D:
    """A line of one strategy, in the band from ``low`` to ``high``."""
    (line,) = axes.plot(rows[x], rows[y], lw=2, **style)
    if band:
        axes.fill_between(
            rows[x], rows["low"], rows["high"], color=style["color"], alpha=0.15, lw=0
        )
    return line


def _draw_full(axes: Axes, full: pd.DataFrame, value: str) -> dict[str, Line2D]:
    if full.empty:
        return {}
    line = axes.axhline(full[value].mean(), color=INK, lw=1.2, ls=":")
    return {f"all {full['labelled'].iloc[0]} volumes": line}


def paired_differences(
    differences: pd.DataFrame, palette: Palette, width: float, label: str = "labelled volumes"
) -> Figure:
    """Paired difference from the reference at each labelled count, with 95% intervals.

    One panel a strategy, all on the same axes.
    """
    strategies = sorted(differences["strategy"].unique())
    n_columns = min(len(strategies), max(1, int(width / 3.2)))
    n_rows = math.ceil(len(strategies) / n_columns)
    with canvas(width, 0.6 + 2.0 * n_rows) as figure:
        panels = _panels(figure, len(strategies), n_columns, label, same_axes=True)
        for axes, strategy in zip(panels, strategies, strict=True):
            rows = differences[differences["strategy"] == strategy]
            axes.axhline(0, color=INK, lw=1.2, ls="--")
            _draw_line(axes, rows, "labelled", "difference", palette.style(strategy))
            axes.set_title(wrapped(palette.labels[strategy], 0.8 * width / n_columns))
            mark_counts(axes, differences["labelled"].tolist())
            axes.grid()
        figure.supylabel("difference in Dice")
        return figure


def query_places_figure(places: pd.DataFrame, labels: Mapping[str, str], width: float) -> Figure:
    """Shares of the queried voxels on foreground, boundaries and background, a bar a strategy.

    The initial regions, which all strategies share, are left out where there are others.
    """
    later = places[places["round"] > 0]
    shares = (places if later.empty else later).groupby("strategy")[list(PLACES)].mean()
    names = [wrapped(labels[str(name)], 0.3 * width) for name in shares.index]
    colours = dict(zip(PLACES, ("#e69f00", "#0072b2", "#c0c0c0"), strict=True))
    with canvas(width, 1.2 + len(names) * _row_height(names)) as figure:
        axes = figure.add_subplot()
        left = np.zeros(len(names))
        handles: list[Artist] = []
        for place in PLACES:
            values = shares[place].to_numpy()
            handles += axes.barh(names, values, left=left, color=colours[place])[:1]
            left += values
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="share of the queried voxels")
        legend_below(figure, handles, ["inside foreground", "on a boundary", "background"])
        return figure


def annotation_curves(
    curves: pd.DataFrame,
    palette: Palette,
    width: float,
    columns: Mapping[str, str],
    dice_label: str = "test Dice",
) -> Figure:
    """Mean Dice against each of several costs, one panel a cost.

    Args:
        curves: of runs of regions.
        palette: of the strategies.
        width: in inches.
        columns: the columns of the costs, by what they are called.
        dice_label: of the vertical axes.
    """
    n_columns = min(len(columns), max(1, int(width / 3.2)))
    n_rows = math.ceil(len(columns) / n_columns)
    with canvas(width, 2.7 * n_rows) as figure:
        lines: dict[str, Line2D] = {}
        panels = _panels(figure, len(columns), n_columns, "")
        for axes, (name, column) in zip(panels, columns.items(), strict=True):
            means = mean_curves(curves.assign(cost=curves[column]), "dice")
            lines |= _draw_curves(axes, means, palette, "cost")
            axes.set_xlabel(name)
            if axes.get_xlim()[1] >= 1e4:  # 20k: a factor at the end would lie on the label
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        figure.supylabel(dice_label)
        legend_below(figure, list(lines.values()), list(lines))
        return figure


def critical_difference(ranking: Ranking, labels: Mapping[str, str], width: float) -> Figure:
    """Critical-difference diagram (Demšar 2006), one row a strategy, the best on top.

    Bars at the right join strategies that cannot be distinguished.
    """
    ranks = ranking.mean_ranks
    k = len(ranks)
    groups = cliques(ranks.tolist(), ranking.critical_difference)
    names = [wrapped(labels[str(name)], 0.35 * width) for name in ranks.index]
    with canvas(width, 1.4 + k * _row_height(names)) as figure:
        axes = figure.add_subplot()
        axes.plot(ranks, range(k), "o", color="#0072b2")
        for row, rank in enumerate(ranks):
            axes.plot([0.9, rank], [row, row], color="#808080", lw=0.8, alpha=0.5, zorder=0)
            axes.annotate(f"{rank:.2f}", (rank, row), xytext=(7, 0), textcoords="offset points",
                          va="center")  # fmt: skip
        shown = min(ranking.critical_difference, k - 1)
        cut = " (cut)" if shown < ranking.critical_difference else ""
        axes.plot([1, 1 + shown], [-0.8, -0.8], color=INK, lw=2)
        axes.annotate(
            f"critical difference {ranking.critical_difference:.2f}{cut}", (1, -0.8),
            xytext=(0, 4), textcoords="offset points",
        )  # fmt: skip
        room = 1 + 5 * CHARACTER * k / (0.5 * width)  # to the right of the last rank's number
        for index, (first, last) in enumerate(groups):
            x = [k + room * (0.8 + 0.25 * index)] * 2
            axes.plot(x, [first - 0.25, last + 0.25], color="#d55e00", lw=4, solid_capstyle="butt")
        right = k + room * (1 + 0.25 * len(groups))
        axes.set(xlim=(0.9, right), ylim=(k - 0.5, -1.7), xlabel="mean rank")
        axes.set_xticks(range(1, k + 1))
        axes.set_yticks(range(k), names)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        return figure


def _row_height(names: Iterable[str]) -> float:
    """The height of a row, in inches, in which the longest of some wrapped names fits."""
    return 0.15 + LINE * max(name.count("\n") + 1 for name in names)


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


def penalty_heat_map(matrix: pd.DataFrame, labels: Mapping[str, str], width: float) -> Figure:
    """Heat map of the penalty matrix: the share of budgets where the row beats the column.

    Columns have the numbers of the rows, whose names may be long.
    """
    names = [
        wrapped(f"{number} {labels[name]}", 0.35 * width)
        for number, name in enumerate(matrix.index, 1)
    ]
    k = len(names)
    with canvas(width, 1.2 + k * _row_height(names)) as figure:
        axes = figure.add_subplot()
        values = matrix.to_numpy(copy=True)
        np.fill_diagonal(values, np.nan)
        mesh = axes.pcolormesh(values, cmap=SEQUENTIAL, vmin=0, vmax=1, edgecolor="white", lw=1)
        if 0.55 * width / k > 5 * CHARACTER:  # the numbers fit into the cells
            for (row, column), value in np.ndenumerate(values):
                if row != column:
                    axes.text(
                        column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center",
                        color="white" if value > 0.3 else "#111111",
                    )  # fmt: skip
        else:
            figure.colorbar(mesh, ax=axes, label="share of budgets", location="bottom")
        centres = np.arange(k) + 0.5
        axes.set_xticks(centres, [str(number) for number in range(1, k + 1)])
        axes.set_yticks(centres, names)
        axes.invert_yaxis()
        axes.set(xlabel="is beaten by the row's")
        return figure


def query_heat_map(queries: pd.DataFrame, labels: Mapping[str, str], width: float) -> Figure:
    """Which cases each run acquired in which round; one column a run, one row a case."""
    wide = queries.pivot(index="case_id", columns=["strategy", "seed"], values="round")
    wide = wide.sort_index(axis=1)
    # first what was acquired early and by many
    order = wide.fillna(queries["round"].max() + 1).mean(axis=1).sort_values(kind="stable").index
    wide = wide.loc[order]
    named = len(wide) <= MOST_NAMED_CASES
    last = int(queries["round"].max())
    strategies = wide.columns.get_level_values("strategy")
    names = list(dict.fromkeys(strategies))
    across = 0.7 * width / len(names)  # inches for a strategy's name
    upright = across < 9 * CHARACTER
    with canvas(width, (0.19 * len(wide) if named else 7.0) + (3.0 if upright else 1.6)) as figure:
        axes = figure.add_subplot()
        mesh = axes.pcolormesh(
            wide.to_numpy(dtype=float), cmap=QUERY_ROUNDS.resampled(last + 1), vmin=-0.5,
            vmax=last + 0.5, edgecolor="white", lw=0.4 if named else 0,
        )  # fmt: skip
        if named:
            cases = [_end_of(str(case_id), 0.3 * width) for case_id in wide.index]
            axes.set_yticks(np.arange(len(wide)) + 0.5, cases)
        else:
            axes.set(yticks=[], ylabel=f"{len(wide)} cases, early and frequent ones on top")
        starts = [int(np.argmax(strategies == name)) for name in names]
        ends = [*starts[1:], len(strategies)]
        middles = [(start + end) / 2 for start, end in zip(starts, ends, strict=True)]
        shown = [wrapped(labels[name], 1.7 if upright else across) for name in names]
        axes.set_xticks(middles, shown, rotation=90 if upright else 0)
        for start in starts[1:]:
            axes.axvline(start, color=INK, lw=1.5)
        axes.invert_yaxis()
        bar = figure.colorbar(mesh, ax=axes, ticks=range(last + 1), location="bottom")
        bar.set_label("acquired after round (0: initial)")
        return figure


def _end_of(text: str, width: float) -> str:
    """The end of a case id, by which ids differ, in at most ``width`` inches."""
    text, most = printable(text), int(width / CHARACTER)
    return text if len(text) <= most else f"…{text[1 - most :]}"


def forecast_figure(
    curves: pd.DataFrame,
    forecasts: Sequence[Forecast],
    palette: Palette,
    width: float,
    value: str = "dice",
    dice_label: str = "test Dice",
    label: str = "labelled volumes",
) -> Figure:
    """The fitted learning curves beyond the rounds so far, with the target.

    A strategy without a fit has only its points.
    """
    reached = [f.volumes for f in forecasts if f.volumes is not None]
    smallest, largest = float(curves["labelled"].min()), float(curves["labelled"].max())
    end = min(MAX_EXTRAPOLATION * largest, max([1.5 * largest, *(1.15 * v for v in reached)]))
    n = np.linspace(smallest, end, 200)
    with canvas(width, _height(width)) as figure:
        axes = figure.add_subplot()
        lines: dict[str, Artist] = {}
        for item in forecasts:
            style = palette.style(item.strategy)
            if item.fit is not None:
                axes.plot(n, item.fit.predict(n), lw=1.5, color=style["color"], ls=style["ls"])
            means = mean_curves(curves[curves["strategy"] == item.strategy], value)
            (points,) = axes.plot(means["labelled"], means["mean"], **style | {"ls": "none"})
            lines[palette.labels[item.strategy]] = points
        target = forecasts[0].target
        lines[f"target {target:.3f}"] = axes.axhline(target, color=INK, lw=1, ls=":")
        axes.axvspan(largest, end, color="#808080", alpha=0.08, lw=0)
        margin = 0.02 * (end - smallest)
        axes.set(xlabel=label, ylabel=dice_label, xlim=(smallest - margin, end))
        axes.grid()
        legend_below(figure, list(lines.values()), list(lines))
        return figure


def calibration_figure(histograms: pd.DataFrame, palette: Palette, width: float) -> Figure:
    """Reliability of predicted probabilities, one panel a round."""
    bins = reliability(histograms)
    rounds = sorted(bins["round"].unique())
    n_columns = min(len(rounds), max(2, int(width / 3.2)))
    side = width / n_columns
    with canvas(width, 0.8 * side * math.ceil(len(rounds) / n_columns) + 0.4) as figure:
        lines: dict[str, Line2D] = {}
        panels = _panels(figure, len(rounds), n_columns, "confidence", same_axes=True)
        for axes, number in zip(panels, rounds, strict=True):
            axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":")
            for strategy, rows in bins[bins["round"] == number].groupby("strategy"):
                style = palette.style(strategy) | {"ms": 4}
                rows = rows.sort_values("confidence")
                (line,) = axes.plot(rows["confidence"], rows["accuracy"], **style)
                lines[palette.labels[strategy]] = line
            axes.set(title=f"round {number}", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            axes.grid()
        figure.supylabel("accuracy")
        legend_below(figure, list(lines.values()), list(lines))
        return figure


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write NAME.svg and NAME.png; returns the SVG for a page."""
    folder.mkdir(parents=True, exist_ok=True)
    document = svg_document(figure, name)
    (folder / f"{name}.svg").write_text(document, encoding="utf-8")
    figure.set_layout_engine("none")  # it is laid out; doing so again takes most of the time
    save_png(figure, folder / f"{name}.png", dpi=150)
    return inline_svg(document, name)


def svg_document(figure: Figure, name: str) -> str:
    """A figure as an SVG document, the same for the same figure and name."""
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        # the text stays text, and who shows the SVG may well have a font for it
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def inline_svg(document: str, name: str) -> str:
    """An SVG document as an element of a page: own ids, no declarations, the page's colours."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix: Callable[[re.Match[str]], str] = lambda m: f"{m[1]}{name}-{m[2]}"  # noqa: E731
    svg = re.sub(r'(\sid=")([^"]+)', prefix, svg)
    svg = re.sub(r'(href="#)([^"]+)', prefix, svg)
    svg = re.sub(r"(url\(#)([^)]+)", prefix, svg)
    return svg.replace(INK, "currentColor").replace(f"fill: {PAPER}", "fill: none")
