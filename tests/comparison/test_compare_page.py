"""The page: escaped, well-formed, self-contained, and readable in a browser."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from synthetic import dice_rows, write_page, write_run, write_sweep

from alseg.comparison.analysis import Comparison, analyse
from alseg.comparison.conclusions import best_strategy, sentences
from alseg.comparison.figures import Palette, cliques
from alseg.comparison.page import all_drawings, sections
from alseg.comparison.runs import find_run_folders, gather_runs
from alseg.comparison.tables import Table, all_tables, latex

VOID = {"meta", "img", "br", "hr", "input", "link"}
HOSTILE = '<script>alert("1")</script> & $x_1$ \\%'


class Reader(HTMLParser):
    """Collects elements and text; fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def page(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(comparison, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of runs whose strategies, classes, cases and data set are hostile strings."""
    root = tmp_path_factory.mktemp("hostile")
    cases = tuple(f"{HOSTILE} {i:02d}" for i in range(30))
    for seed in (1, 2, 3):
        for number, strategy in enumerate(("random", HOSTILE, '"><img src=x onerror=alert(2)>')):
            history = [
                {k.replace("anterior", HOSTILE): v for k, v in row.items()}
                for row in dice_rows(strategy, seed, (5, 10, 15, 20, 25, 30), 0.004)
            ]
            write_run(
                root / f"{number}_{seed}", strategy, seed, cases=cases, history=history,
                data={"name": HOSTILE},
            )  # fmt: skip
    run_set = gather_runs(find_run_folders([root]), reference="random")
    return write_page(analyse(run_set, target=0.88), root / "page")


def test_the_page_is_well_formed_and_describes_itself(page: Path) -> None:
    reader = read(page)
    tags = [tag for tag, _ in reader.elements]
    assert tags.count("h1") == tags.count("main") == 1
    assert tags.count("table") == tags.count("caption")
    assert ("html", {"lang": "en"}) in reader.elements
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert ("meta", viewport) in reader.elements
    names = [
        a["aria-label"] for tag, a in reader.elements if a.get("role") == "img" and tag == "div"
    ]
    assert len(names) == tags.count("svg") == 2 * 8  # for a desk and for a phone
    assert all(names)
    assert all(a.get("alt") for tag, a in reader.elements if tag == "img")
    ids = [a["id"] for _, a in reader.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for tag, a in reader.elements if tag == "a"]
    assert {link.removeprefix("#") for link in links if link} <= set(ids)


def test_the_page_asks_for_nothing_from_outside(page: Path) -> None:
    for tag, attributes in read(page).elements:
        assert tag not in {"script", "link", "iframe", "object", "embed"}
        for name in ("src", "href", "xlink:href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:"))
    assert not re.search(r"@import|url\((?!#)", page.read_text(encoding="utf-8"))


def test_the_svgs_of_the_page_are_xml(page: Path) -> None:
    found = re.findall(r"<svg.*?</svg>", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(found) == 16
    for svg in found:
        ElementTree.fromstring(svg)
        assert "currentColor" in svg


def test_the_answer_comes_first_and_is_plain(comparison: Comparison, page: Path) -> None:
    found = sentences(comparison)
    assert found[0].startswith("power was the best strategy: from 5 to 30 labelled volumes")
    assert "With 4 seeds this difference" in found[1]
    assert any("Training on all 60 volumes" in s for s in found)
    assert any("1 run was left out" in s for s in found)
    text = " ".join(read(page).text)
    assert text.index(found[0]) < text.index("Learning curves")


def test_a_strategy_that_reads_labels_never_wins_and_is_marked(
    comparison: Comparison, page: Path
) -> None:
    areas = comparison.summaries.groupby("strategy")["area"].mean()
    assert areas.idxmax() == "oracle_foreground"
    assert best_strategy(comparison) == "power"
    for table in all_tables(comparison):
        shown = [*table.shown.columns, *table.shown.to_numpy().ravel()]
        assert "oracle_foreground" not in shown  # always with its mark
    figures = {d.name: d.figure for d in all_drawings(comparison)}
    labels = [text.get_text() for text in figures["learning_curves"].legends[0].get_texts()]
    assert "oracle_foreground (reads labels)" in labels


def test_every_strategy_has_a_panel_of_differences(comparison: Comparison) -> None:
    figures = {d.name: d.figure for d in all_drawings(comparison)}
    titles = [axes.get_title() for axes in figures["paired_differences"].axes if axes.lines]
    others = sorted(set(comparison.run_set.strategies) - {"random"})
    assert [" ".join(title.split()) for title in titles] == [comparison.labels[s] for s in others]
    assert len(titles) > 2


def test_many_bands_would_hide_each_other() -> None:
    names = ["random", "a", "b", "c", "d"]
    few, many = (Palette(some, "random", {n: n for n in some}) for some in (names[:4], names))
    assert [few.has_band(name) for name in few.strategies] == [True] * 4
    assert [many.has_band(name) for name in names] == [True, False, False, False, False]


def test_unfinished_runs_and_pictures_are_on_the_page(page: Path) -> None:
    reader = read(page)
    text = " ".join(reader.text)
    assert "power, seed 9 (power_seed9)" in text
    assert "3 of 6 rounds finished" in text
    (picture,) = [a for tag, a in reader.elements if tag == "img"]
    assert picture["alt"] == "variance, round 1: 01_case_007"


def test_hostile_names_stay_text(hostile: Path) -> None:
    reader = read(hostile)
    assert not [tag for tag, _ in reader.elements if tag in {"script", "img"}]
    assert not [name for _, a in reader.elements for name in a if name.startswith("on")]
    text = "".join(reader.text)
    assert HOSTILE in text
    assert '"><img src=x onerror=alert(2)>' in text


def test_hostile_names_stay_text_in_latex_and_csv(hostile: Path) -> None:
    tables = hostile.parent / "tables"
    written = (tables / "summary.tex").read_text()
    assert r"\$x\_1\$ \textbackslash{}\%" in written
    with (tables / "summary.csv").open() as file:
        names = {row["strategy"] for row in csv.DictReader(file)}
    assert HOSTILE in names


def test_tables_have_csv_with_the_numbers_and_latex(comparison: Comparison, page: Path) -> None:
    tables = {table.name: table for table in all_tables(comparison)}
    written = {path.stem for path in (page.parent / "tables").glob("*.csv")}
    assert written == {path.stem for path in (page.parent / "tables").glob("*.tex")} == set(tables)
    with (page.parent / "tables" / "differences.csv").open() as file:
        rows = list(csv.DictReader(file))
    area = comparison.differences.set_index("strategy").loc["power"]
    (row,) = [r for r in rows if r["strategy"] == "power" and r["of"] == "area"]
    assert float(row["difference"]) == area["difference"]
    assert r"\begin{tabular}{lrrr}" in latex(tables["summary"])
    assert {path.suffix for path in (page.parent / "figures").iterdir()} == {".png", ".svg"}


def test_two_seeds_give_plain_sentences_instead_of_p_values(tmp_path: Path) -> None:
    write_sweep(tmp_path, ("random", "variance", "power"), (1, 2))
    comparison = analyse(gather_runs(find_run_folders([tmp_path]), reference="random"))
    page = write_page(comparison, tmp_path / "page")
    text = " ".join(read(page).text)
    first = sentences(comparison)[0]
    assert first.startswith("power came out highest, with too few seeds for a test: from 5 to 30")
    assert "paired by seed, a difference of +0.0" in first
    assert "2 seeds in common are too few for a test or an interval" in text
    assert "Whether labelling more still helps cannot be said from 2 seeds" in text
    assert "How many annotations power saved cannot be said from 2 seeds" in text
    assert "No matrix: it takes" in text
    assert "No ranks: they take" in text
    assert "No full-data runs: add them with strategy=full." in text
    assert "No forecast: give --target-dice" in text
    assert not re.search(r"p = |p below", text)


def test_random_alone_and_random_as_the_best(tmp_path: Path) -> None:
    write_sweep(tmp_path / "a", ("random",), (1,))
    alone = analyse(gather_runs(find_run_folders([tmp_path / "a"]), reference="random"))
    assert sentences(alone)[0].startswith("Only random has runs")
    write_page(alone, tmp_path / "page")
    write_sweep(tmp_path / "b", ("random", "power"), (1, 2, 3))
    other = analyse(gather_runs(find_run_folders([tmp_path / "b"]), reference="power"))
    areas = other.summaries.groupby("strategy")["area"].mean()
    first, second = sentences(other)[:2]
    assert first.startswith(
        "power was the best strategy: from 5 to 30 labelled volumes its mean test Dice was "
        f"{areas['power']:.3f}, against {areas['random']:.3f} for random; paired by seed, a "
        f"difference of {areas['power'] - areas['random']:+.3f} (95% interval +"
    )
    assert second == "Worse than power beyond chance: random (paired t-tests, Holm-corrected)."


def test_dice_against_the_annotation_cost(tmp_path: Path) -> None:
    # the same Dice for all, but power finds volumes that cost half as much
    for strategy, price in (("random", 2000), ("power", 1000)):
        for seed in (1, 2, 3):
            history = [
                row | {"cost": price * row["labelled"] + seed}
                for row in dice_rows("random", 1, (5, 10, 15, 20, 25, 30), 0.0)
            ]
            folder = tmp_path / f"{strategy}_{seed}"
            write_run(folder, strategy, seed, history=history, cost="foreground_voxels")
    comparison = analyse(gather_runs(find_run_folders([tmp_path]), reference="random"))
    assert comparison.cost_unit == "foreground_voxels"
    (axes,) = {d.name: d.figure for d in all_drawings(comparison)}["cost_curves"].axes
    assert axes.get_xlabel() == "annotated foreground voxels"
    lines = dict(zip(("power", "random"), axes.lines, strict=True))
    # seeds are averaged at equal counts: 5 volumes cost 10,001 to 10,003
    assert lines["random"].get_xdata()[[0, -1]].tolist() == [10_002, 60_002]
    assert lines["power"].get_xdata()[[0, -1]].tolist() == [5_002, 30_002]
    assert lines["power"].get_ydata().tolist() == lines["random"].get_ydata().tolist()
    text = " ".join(read(write_page(comparison, tmp_path / "page")).text)
    assert "annotated foreground voxels" in text
    assert "60,002" in text


def test_a_cost_of_one_a_volume_needs_no_curve_of_its_own(comparison: Comparison) -> None:
    assert comparison.cost_unit is None
    assert "cost_curves" not in {d.name for d in all_drawings(comparison)}
    assert "cost" not in {table.name for table in all_tables(comparison)}


def test_cliques_are_maximal() -> None:
    assert cliques([1.0, 1.5, 2.0, 4.0], 1.0) == [(0, 2)]
    assert cliques([1.0, 2.0, 3.0], 1.0) == [(0, 1), (1, 2)]
    assert cliques([1.0, 3.0], 1.0) == []


@pytest.mark.parametrize("width", [1280, 820, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["page", "hostile"])
def test_a_browser_shows_it_without_sideways_scrolling(
    browser: Any, request: pytest.FixtureRequest, width: int, scheme: str, which: str
) -> None:
    path: Path = request.getfixturevalue(which)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(path.as_uri())
    # what opens on demand must fit too
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    overflow = browser.execute_script("return document.scrollingElement.scrollWidth - innerWidth")
    assert overflow <= 0
    text = browser.execute_script("return document.body.innerText")
    assert "its mean test Dice was" in text
    assert "Test Dice by strategy" in text
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 23, 27)")
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].filter(s => s.clientWidth)"
        ".map(s => [s.clientWidth, s.clientHeight])"
    )
    assert all(0.7 * min(width, 1024) < w <= width and h > 100 for w, h in drawn)
    assert drawn
    scrolls = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].some(s => s.scrollWidth > s.clientWidth)"
    )
    assert scrolls or width > 500  # the phone's tables do, at whose side a shadow tells so
    small = browser.execute_script(
        "return Math.min(...[...document.querySelectorAll('figure svg')].filter(s => s.clientWidth)"
        ".map(s => s.clientWidth / s.viewBox.baseVal.width * 10.5))"
    )
    assert small >= 10.5  # pixels, the text of the figures
    labels = browser.execute_script(
        "return [...document.querySelectorAll('figure svg text')].map(t => t.textContent)"
    )
    assert "labelled volumes" in labels


def test_a_table_that_no_section_names_is_shown_all_the_same(comparison: Comparison) -> None:
    data = pd.DataFrame({"strategy": ["random"], "dice": [0.5]})
    tables = [*all_tables(comparison), Table("mine", "My own table", data, data.astype(str))]
    assert [t.caption for t in sections(comparison, tables, {})[-1].tables] == ["My own table"]
    assert "Other tables" not in {s.title for s in sections(comparison, tables[:-1], {})}


def test_a_strategy_with_only_easy_seeds_is_not_the_best(tmp_path: Path) -> None:
    def write(strategy: str, seed: int, gain: float) -> None:
        history = dice_rows("random", seed, (5, 10, 15, 20, 25, 30), 0.001)
        for row in history:
            for name in row.keys() - {"round", "labelled"}:
                row[name] += 0.1 * (seed > 3) + gain  # seeds 4 to 6 drew easier volumes
        write_run(tmp_path / f"{strategy}_{seed}", strategy, seed, history=history)

    for seed in range(1, 7):
        write("random", seed, 0)
        write("variance", seed, 0.01 + 0.001 * seed)
        if seed > 3:
            write("power", seed, 0.005 + 0.001 * seed)
    comparison = analyse(gather_runs(find_run_folders([tmp_path]), reference="random"))
    means = comparison.summaries.groupby("strategy")["area"].mean()
    assert means.idxmax() == "power"
    assert best_strategy(comparison) == "variance"
    said = sentences(comparison)
    assert said[0].startswith("variance was the best strategy")
    assert any(line.startswith("Not all strategies have the same seeds") for line in said)
    text = read(write_page(comparison, tmp_path / "page")).text
    assert "Not all strategies have the same seeds" in " ".join(text)
    figure = {d.name: d.figure for d in all_drawings(comparison)}["learning_curves"]
    labels = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert labels == {"power, 3 of 6 seeds", "random", "variance"}
