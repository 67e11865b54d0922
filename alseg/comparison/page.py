"""The page: one self-contained HTML file with the answer, the figures and the tables."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from alseg.comparison import figures
from alseg.comparison.analysis import Comparison
from alseg.comparison.answer import sentences
from alseg.comparison.figures import Palette
from alseg.comparison.runs import Run, describe
from alseg.comparison.tables import Table, all_tables, write_tables
from alseg.files import write_atomically

PICTURE_WIDTH = 900  # pixels; the originals stay in the run folders
PICTURES_PER_ROUND = 3


@dataclass(frozen=True)
class Drawing:
    """A figure of the page.

    Attributes:
        name: of its files.
        caption: what it shows, visible below it.
        alt: what it shows, for those who cannot see it.
        figure: the figure.
    """

    name: str
    caption: str
    alt: str
    figure: Figure


@dataclass(frozen=True)
class ShownDrawing:
    """A drawing in the page."""

    caption: str
    alt: str
    svg: str


@dataclass(frozen=True)
class ShownTable:
    """A table in the page; a folded one opens on demand."""

    caption: str
    headings: list[str]
    rows: list[list[str]]
    notes: tuple[str, ...]
    folded: bool


@dataclass(frozen=True)
class Picture:
    """A picture in the page."""

    alt: str
    base64: str
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """Pictures that open on demand."""

    title: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    drawings: list[ShownDrawing] = field(default_factory=list)
    tables: list[ShownTable] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write index.html, figures/*.png and *.svg, tables/*.csv and *.tex.

    Returns:
        The page's path.
    """
    tables = all_tables(comparison)
    write_tables(tables, folder / "tables")
    drawings = {
        drawing.name: ShownDrawing(
            drawing.caption,
            drawing.alt,
            figures.save(drawing.figure, folder / "figures", drawing.name),
        )
        for drawing in all_drawings(comparison)
    }
    page = folder / "index.html"
    write_atomically(page, render(comparison, tables, drawings))
    return page


def all_drawings(comparison: Comparison) -> list[Drawing]:
    """The figures that the data carry, in the order of the page."""
    curves, full, labels = comparison.curves, comparison.full, comparison.labels
    palette = Palette(comparison.run_set.strategies, comparison.reference, labels)
    interval = "95% intervals of the mean over seeds (Student's t)"
    banded = [labels[s] for s in comparison.run_set.strategies if palette.has_band(s)]
    band = f" Bands: {interval}" + ("." if len(banded) > 1 else f", of {banded[0]} alone.")
    names = ", ".join(labels[s] for s in comparison.run_set.strategies)
    drawings = [
        Drawing(
            "learning_curves",
            f"Mean test Dice against the number of labelled volumes.{band}",
            f"Learning curves of {names}; the table of Dice by labelled volumes has the numbers.",
            figures.learning_curves(curves, full, palette),
        )
    ]
    if len(comparison.run_set.classes) > 1:
        drawings.append(
            Drawing(
                "class_curves",
                f"Test Dice of each class.{band}",
                f"Learning curves of {names} for {', '.join(comparison.run_set.classes)}.",
                figures.class_curves(curves, full, palette, comparison.run_set.classes),
            )
        )
    if comparison.cost_unit is not None:
        unit = comparison.cost_unit.replace("_", " ")
        drawings.append(
            Drawing(
                "cost_curves",
                f"Mean test Dice against the annotation cost in {unit}.{band}",
                f"Test Dice of {names} against annotation cost; its table has the numbers.",
                figures.learning_curves(
                    curves, full, palette, budget="cost", label=f"annotated {unit}"
                ),
            )
        )
    if len(comparison.run_set.strategies) > 1:
        drawings.append(
            Drawing(
                "paired_differences",
                f"Dice minus that of {labels[comparison.reference]}, paired by seed. "
                f"Bands: {interval}.",
                f"Paired differences from {labels[comparison.reference]} by labelled volumes.",
                figures.paired_differences(comparison.difference_curves, palette),
            )
        )
    if comparison.matrix is not None:
        drawings.append(
            Drawing(
                "penalty_matrix",
                "Pairwise penalty matrix: how often the row's strategy beats the column's.",
                "Heat map of the pairwise penalty matrix; its table has the numbers.",
                figures.penalty_heat_map(comparison.matrix, labels),
            )
        )
    if comparison.ranking is not None:
        drawings.append(
            Drawing(
                "critical_difference",
                "Critical-difference diagram: mean ranks, 1 is best; an orange bar joins "
                "strategies that Nemenyi's test cannot tell apart.",
                "Critical-difference diagram; the table of mean ranks has the numbers.",
                figures.critical_difference(comparison.ranking, labels),
            )
        )
    if any(item.fit is not None for item in comparison.forecasts):
        drawings.append(
            Drawing(
                "forecast",
                "Fitted learning curves; the shaded range is extrapolated.",
                "Fitted learning curves beyond the rounds so far, with the target Dice.",
                figures.forecast_figure(curves, comparison.forecasts, palette),
            )
        )
    if not comparison.queries.empty:
        drawings.append(
            Drawing(
                "queries",
                "Which case each run acquired when: one column a run (by strategy, then seed), "
                "one row a case; empty where it was never acquired.",
                "Heat map of the round in which each run acquired each case.",
                figures.query_heat_map(comparison.queries, labels),
            )
        )
    if not comparison.calibration.empty:
        drawings.append(
            Drawing(
                "calibration",
                "Reliability of the predicted probabilities: accuracy against confidence.",
                "Reliability diagrams, one for each round; the table has the calibration errors.",
                figures.calibration_figure(comparison.calibration, palette),
            )
        )
    return drawings


def render(
    comparison: Comparison, tables: Sequence[Table], drawings: dict[str, ShownDrawing]
) -> str:
    """The page's HTML; every string from a run folder is escaped by the template."""
    environment = Environment(
        loader=PackageLoader("alseg.comparison", "."), autoescape=True, undefined=StrictUndefined
    )
    run_set = comparison.run_set
    n_runs, n_seeds = len(run_set.runs), len(comparison.seeds)
    return environment.get_template("page.html.j2").render(
        title=f"Comparison of strategies on {run_set.data}",
        subtitle=(
            f"{n_runs} runs, {len(run_set.strategies)} strategies, "
            f"{n_seeds} {'seed' if n_seeds == 1 else 'seeds'}; "
            f"{run_set.runs[0].n_volumes} training volumes"
        ),
        answer=sentences(comparison),
        sections=sections(comparison, tables, drawings),
    )


def sections(
    comparison: Comparison, tables: Sequence[Table], drawings: dict[str, ShownDrawing]
) -> list[Section]:
    """The page's sections; a section without content is left out."""
    by_name = {table.name: table for table in tables}
    class_tables = [name for name in by_name if name.startswith("dice_")]

    def section(
        id_: str, title: str, figure_names: Sequence[str], table_names: Sequence[str]
    ) -> Section:
        return Section(
            id_,
            title,
            drawings=[drawings[name] for name in figure_names if name in drawings],
            tables=[
                shown_table(by_name[name], folded=name in class_tables)
                for name in table_names
                if name in by_name
            ],
        )

    queries = section("queries", "Queries", ["queries"], [])
    queries.galleries.extend(galleries(comparison))
    found = [
        section(
            "curves",
            "Learning curves",
            ["learning_curves", "class_curves", "cost_curves"],
            ["summary", "dice", *class_tables, "cost", "labels_needed", "foreground_efficiency"],
        ),
        section("differences", "Differences", ["paired_differences"], ["differences"]),
        section(
            "tests", "Rankings and tests", ["penalty_matrix", "critical_difference"],
            ["penalty", "ranks"],
        ),
        section("forecast", "Forecast", ["forecast"], ["forecast", "back_test"]),
        queries,
        section("calibration", "Calibration", ["calibration"], ["calibration"]),
        section("time", "Time", [], ["seconds"]),
        runs_section(comparison),
    ]  # fmt: skip
    return [s for s in found if s.paragraphs or s.drawings or s.tables or s.galleries]


def shown_table(table: Table, *, folded: bool) -> ShownTable:
    """A table as the template takes it."""
    rows = [[str(cell) for cell in row] for row in table.shown.itertuples(index=False)]
    headings = [str(heading) for heading in table.shown.columns]
    return ShownTable(table.caption, headings, rows, table.notes, folded)


def runs_section(comparison: Comparison) -> Section:
    """Which runs were used and which were not."""
    used = [[describe(run), str(run.state.finished_rounds)] for run in comparison.run_set.runs]
    unused = [[run.name, run.reason] for run in comparison.run_set.left_out]
    tables = [ShownTable("Runs compared", ["run", "finished rounds"], used, (), folded=True)]
    if unused:
        headings = ["run", "why it was left out"]
        tables.insert(0, ShownTable("Runs left out", headings, unused, (), folded=False))
    return Section("runs", "Runs", tables=tables)


def galleries(comparison: Comparison) -> list[Gallery]:
    """Overlays of the top queries of each round, from the first seed of each strategy."""
    first: dict[str, Run] = {}
    for run in comparison.run_set.runs:
        first.setdefault(run.strategy, run)
    found = []
    for name, run in first.items():
        pictures = [
            embedded(path, f"{comparison.labels[name]}, round {row['round']}: {path.stem}")
            for row in run.state.history
            for path in sorted(run.round_folder(row["round"]).glob("pictures/*.png"))[
                :PICTURES_PER_ROUND
            ]
        ]
        if pictures:
            title = f"Top queries of {comparison.labels[name]}, seed {run.seed}, with uncertainty"
            found.append(Gallery(title, pictures))
    return found


def embedded(path: Path, alt: str) -> Picture:
    """A picture as a small JPEG in base64."""
    with Image.open(path, formats=["PNG"]) as image:
        small = image.convert("RGB")
    small.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80, optimize=True)
    return Picture(alt, base64.b64encode(stream.getvalue()).decode(), *small.size)
