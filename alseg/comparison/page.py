"""The page: one self-contained HTML file with the answer, the figures and the tables."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from alseg import __version__
from alseg.comparison import figures
from alseg.comparison.analysis import Comparison
from alseg.comparison.budget import BUDGETS, OF_REGIONS
from alseg.comparison.conclusions import sentences
from alseg.comparison.figures import NARROW, WIDE, Palette
from alseg.comparison.runs import Run
from alseg.comparison.tables import Table, all_tables, write_tables
from alseg.core.metric_names import DICE
from alseg.curves.models import MOST_MISS
from alseg.run.folder import PICTURES_FOLDER
from alseg.run.measure import cost_axis
from alseg.run.provenance import git_commit
from alseg.system.files import write_atomically
from alseg.system.text import capitalised, printable

PICTURE_WIDTH = 900  # pixels; the originals stay in the run folders
PICTURES_PER_ROUND = 3
PAGE_FILE = "index.html"
COMPUTED_WITH = ("numpy", "pandas", "scipy", "scikit-posthocs", "matplotlib")
INTERVAL = "95% intervals of the mean over seeds (Student's t)"


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
    """A drawing in the page, for a desk and for a phone."""

    caption: str
    alt: str
    wide_svg: str
    narrow_svg: str


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
class Link:
    """A link to another page of the same folder."""

    address: str
    text: str


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    command: str = ""
    drawings: list[ShownDrawing] = field(default_factory=list)
    tables: list[ShownTable] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)


@dataclass(frozen=True)
class Origin:
    """How a comparison was made, and from what.

    Attributes:
        command: makes it again.
        date: when it was made.
        versions: of the software that computed it, by name.
        runs: where each of the runs was found, in their order.
    """

    command: str
    date: str
    versions: Mapping[str, str]
    runs: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """When the page was made and with what."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"Made {self.date} with {versions}. The same page again:"

    @classmethod
    def now(cls, command: str, runs: Iterable[str]) -> Origin:
        """A comparison that is made now, by this process."""
        commit = git_commit(Path(__file__))
        versions = {
            "alseg": f"{__version__} (git {commit})" if commit else __version__,
            "Python": platform.python_version(),
        }
        versions |= {name: version(name) for name in COMPUTED_WITH}
        date = datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(command, date, versions, tuple(runs))


def write_comparison(comparison: Comparison, folder: Path, origin: Origin) -> Path:
    """Write index.html, figures/*.png and *.svg, tables/*.csv and *.tex.

    Args:
        comparison: the comparison.
        folder: where the files go.
        origin: how and from what the page was made.

    Returns:
        The page's path.
    """
    tables = all_tables(comparison)
    write_tables(tables, folder / "tables")
    drawings = save_drawings(
        all_drawings(comparison, WIDE), all_drawings(comparison, NARROW), folder
    )
    page = folder / PAGE_FILE
    write_atomically(page, render(comparison, tables, drawings, origin))
    return page


def save_drawings(
    wide: Iterable[Drawing], narrow: Iterable[Drawing], folder: Path
) -> dict[str, ShownDrawing]:
    """Write figures/*.png and *.svg of the wide drawings; give both to the page, by name."""
    shown = {}
    for for_a_desk, for_a_phone in zip(wide, narrow, strict=True):
        svg = figures.save(for_a_desk.figure, folder / "figures", for_a_desk.name)
        name = f"{for_a_desk.name}-narrow"  # of its ids, which the page must have once
        narrow_svg = figures.inline_svg(figures.svg_document(for_a_phone.figure, name), name)
        shown[for_a_desk.name] = ShownDrawing(for_a_desk.caption, for_a_desk.alt, svg, narrow_svg)
    return shown


def all_drawings(comparison: Comparison, width: float = WIDE) -> list[Drawing]:
    """The figures that the data carry, in the order of the page, ``width`` inches wide."""
    palette = Palette(comparison.run_set.strategies, comparison.reference, comparison.labels)
    return [
        *_curve_drawings(comparison, palette, width),
        *_strategy_drawings(comparison, palette, width),
        *_further_drawings(comparison, palette, width),
    ]


def _curve_drawings(comparison: Comparison, palette: Palette, width: float) -> list[Drawing]:
    """Dice against what has been labelled: over all classes, by class and by cost."""
    curves, full, labels = comparison.curves, comparison.full, comparison.labels
    measure, along = comparison.measure, comparison.budget_label
    the_number_of = "the number of " if comparison.run_set.budget == "labelled" else ""
    banded = [labels[s] for s in comparison.run_set.strategies if palette.has_band(s)]
    band = f" Bands: {INTERVAL}" + ("." if len(banded) > 1 else f", only for {banded[0]}.")
    names = ", ".join(labels[s] for s in comparison.run_set.strategies)
    drawings = [
        Drawing(
            "learning_curves",
            f"Mean {measure.title} against {the_number_of}{along}.{band}",
            f"Learning curves of {names}; the table of Dice has the numbers.",
            figures.learning_curves(
                curves, full, palette, width, label=along, dice_label=measure.label
            ),
        )
    ]
    if len(comparison.run_set.classes) > 1:
        drawings.append(
            Drawing(
                "class_curves",
                f"{capitalised(measure.title)} of each class.{band}",
                f"Learning curves of {names} for {', '.join(comparison.run_set.classes)}.",
                figures.class_curves(
                    curves, full, palette, width, comparison.run_set.classes, measure.label, along
                ),
            )
        )
    if comparison.cost_unit is not None:
        axis = cost_axis(comparison.cost_unit)
        drawings.append(
            Drawing(
                "cost_curves",
                f"Mean {measure.title} against the annotation cost: {axis}.{band}",
                f"{capitalised(measure.label)} of {names} against annotation cost; its "
                "table has the numbers.",
                figures.learning_curves(
                    curves,
                    full,
                    palette,
                    width,
                    budget="cost",
                    label=axis,
                    dice_label=measure.label,
                ),
            )
        )
    if not comparison.query_places.empty:
        drawings.append(_effort_drawing(comparison, palette, width, band))
    return drawings


def _effort_drawing(comparison: Comparison, palette: Palette, width: float, band: str) -> Drawing:
    """Dice against each thing that annotating regions took."""
    columns = {BUDGETS[name]: f"annotated_{name}" for name in OF_REGIONS}
    curves = comparison.curves.dropna(subset=list(columns.values()))
    measure = comparison.measure
    return Drawing(
        "effort_curves",
        f"Mean {measure.title}, over whole volumes without ignored voxels, against what annotating "
        f"the regions took.{band}",
        f"{capitalised(measure.label)} against each cost; the table of effort has the numbers.",
        figures.annotation_curves(curves, palette, width, columns, measure.label),
    )


def _strategy_drawings(comparison: Comparison, palette: Palette, width: float) -> list[Drawing]:
    """What compares the strategies with each other."""
    labels, drawings, along = comparison.labels, list[Drawing](), comparison.budget_label
    if len(comparison.run_set.strategies) > 1:
        drawings.append(
            Drawing(
                "paired_differences",
                f"Dice minus that of {labels[comparison.reference]}, paired by seed. "
                f"Bands: {INTERVAL}.",
                f"Paired differences from {labels[comparison.reference]} by {along}.",
                figures.paired_differences(comparison.difference_curves, palette, width, along),
            )
        )
    if comparison.matrix is not None:
        drawings.append(
            Drawing(
                "penalty_matrix",
                "Pairwise penalty matrix: the share of the budgets at which the row's "
                "strategy beats the column's, which has the number of its row.",
                "Heat map of the pairwise penalty matrix; its table has the numbers.",
                figures.penalty_heat_map(comparison.matrix, labels, width),
            )
        )
    if comparison.ranking is not None:
        drawings.append(
            Drawing(
                "critical_difference",
                "Critical-difference diagram: mean ranks, 1 is best; an orange bar joins "
                "strategies that Nemenyi's test cannot distinguish.",
                "Critical-difference diagram; the table of mean ranks has the numbers.",
                figures.critical_difference(comparison.ranking, labels, width),
            )
        )
    return drawings


def _further_drawings(comparison: Comparison, palette: Palette, width: float) -> list[Drawing]:
    """Forecasts, queries and calibration."""
    drawings = list[Drawing]()
    if any(item.fit is not None for item in comparison.forecasts):
        drawings.append(
            Drawing(
                "forecast",
                "Fitted learning curves; the shaded range is extrapolated. A fit that misses its "
                f"points by more than {MOST_MISS:.0%} of their range of Dice (root mean square) is "
                "not drawn, and forecasts nothing.",
                "Fitted learning curves beyond the rounds so far, with the target Dice.",
                figures.forecast_figure(
                    comparison.fitted,
                    comparison.forecasts,
                    palette,
                    width,
                    dice_label=comparison.measure.label,
                    label=comparison.budget_label,
                ),
            )
        )
    if not comparison.queries.empty:
        drawings.append(
            Drawing(
                "queries",
                "Which case each run acquired when: one column a run (by strategy, then seed), "
                "one row a case; empty where it was never acquired.",
                "Heat map of the round in which each run acquired each case.",
                figures.query_heat_map(comparison.queries, comparison.labels, width),
            )
        )
    if not comparison.query_places.empty:
        drawings.append(_asked_drawing(comparison, width))
    if not comparison.calibration.empty:
        drawings.append(
            Drawing(
                "calibration",
                "Reliability of the predicted probabilities: accuracy against confidence.",
                "Reliability diagrams, one for each round; the table has the calibration errors.",
                figures.calibration_figure(comparison.calibration, palette, width),
            )
        )
    return drawings


def _asked_drawing(comparison: Comparison, width: float) -> Drawing:
    """Where in the volumes each strategy asks."""
    return Drawing(
        "query_places",
        "Where in the volumes each strategy asks: shares of the annotated voxels of its queries, "
        "means over rounds and seeds.",
        "Bars of the shares inside foreground, on boundaries and in the background; the table has "
        "the numbers.",
        figures.query_places_figure(comparison.query_places, comparison.labels, width),
    )


def environment() -> Environment:
    """Of the page's template: it escapes what HTML, or a terminal, would act on in every string."""
    return Environment(
        loader=PackageLoader("alseg.comparison", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,  # not our SVG
    )


def render(
    comparison: Comparison,
    tables: Sequence[Table],
    drawings: dict[str, ShownDrawing],
    origin: Origin,
) -> str:
    """The page's HTML."""
    run_set = comparison.run_set
    n_runs, n_seeds = len(run_set.runs), len(comparison.seeds)
    return html(
        f"Comparison of strategies on {run_set.data}",
        f"{n_runs} runs, {len(run_set.strategies)} strategies, "
        f"{n_seeds} {'seed' if n_seeds == 1 else 'seeds'}; "
        f"{run_set.runs[0].n_volumes} training volumes",
        sentences(comparison),
        [*sections(comparison, tables, drawings), origin_section(comparison, origin)],
    )


def name_of_file(name: str) -> str:
    """A name as part of a folder's."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def html(title: str, subtitle: str, answer: Sequence[str], sections: Sequence[Section]) -> str:
    """A page of the template."""
    template = environment().get_template("page.html.j2")
    return template.render(title=title, subtitle=subtitle, answer=answer, sections=sections)


def sections(
    comparison: Comparison, tables: Sequence[Table], drawings: dict[str, ShownDrawing]
) -> list[Section]:
    """The page's sections; a section without content is left out."""
    by_name = {table.name: table for table in tables}
    means = [DICE, *comparison.run_set.further_metrics]
    class_tables = [n for n in by_name if n.startswith(tuple(f"{metric}_" for metric in means))]
    placed: set[str] = set()

    def section(
        id_: str, title: str, figure_names: Sequence[str], table_names: Sequence[str]
    ) -> Section:
        placed.update(table_names)
        return Section(
            id_,
            title,
            drawings=[drawings[name] for name in figure_names if name in drawings],
            tables=[
                shown_table(by_name[name], folded=name in [*class_tables, "queries"])
                for name in table_names
                if name in by_name
            ],
        )

    queries = section(
        "queries", "Queries", ["query_places", "queries"], ["query_places", "queries"]
    )
    queries.galleries.extend(galleries(comparison))
    found = [
        section(
            "curves",
            "Learning curves",
            ["learning_curves", "class_curves", "cost_curves", "effort_curves"],
            ["summary", *means, *class_tables, "cost", "effort", "last_gain", "labels_needed",
             "foreground_efficiency"],
        ),
        section("differences", "Differences", ["paired_differences"],
                ["differences", "annotations_saved"]),
        section(
            "tests", "Rankings and tests", ["penalty_matrix", "critical_difference"],
            ["penalty", "ranks"],
        ),
        section("forecast", "Forecast", ["forecast"], ["forecast", "back_test"]),
        queries,
        section("calibration", "Calibration", ["calibration"], ["calibration"]),
        section("time", "Time", [], ["seconds"]),
    ]  # fmt: skip
    others = [name for name in by_name if name not in placed]
    found.append(section("others", "Other tables", [], others))
    return [s for s in found if s.paragraphs or s.drawings or s.tables or s.galleries]


def shown_table(table: Table, *, folded: bool) -> ShownTable:
    """A table as the template takes it."""
    rows = [[str(cell) for cell in row] for row in table.shown.itertuples(index=False)]
    headings = [str(heading) for heading in table.shown.columns]
    return ShownTable(table.caption, headings, rows, table.notes, folded)


def origin_section(comparison: Comparison, origin: Origin) -> Section:
    """How the page was made, which runs were used and which were not."""
    used = [
        [
            comparison.labels[run.strategy],
            str(run.seed),
            str(run.state.finished_rounds),
            source,
        ]
        for run, source in zip(comparison.run_set.runs, origin.runs, strict=True)
    ]
    headings = ["strategy", "seed", "finished rounds", "run"]
    tables = [ShownTable("Runs compared", headings, used, (), folded=True)]
    unused = [[run.name, run.reason] for run in comparison.run_set.left_out]
    if unused:
        headings = ["run", "why it was left out"]
        tables.insert(0, ShownTable("Runs left out", headings, unused, (), folded=False))
    return Section("runs", "Runs", [origin.sentence], command=origin.command, tables=tables)


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
            for path in sorted(run.round_folder(row["round"]).glob(f"{PICTURES_FOLDER}/*.png"))[
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
