"""Any name, through each of the grammars that a comparison writes: HTML, SVG, LaTeX, CSV."""

from __future__ import annotations

import html
import io
import tempfile
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import dice_rows, write_page, write_run

from alseg.comparison.analysis import analyse
from alseg.comparison.figures import NARROW, Palette, learning_curves, svg_document
from alseg.comparison.page import Section, ShownTable, environment
from alseg.comparison.runs import find_run_folders, gather_runs, read_table
from alseg.comparison.tables import Table, latex, latex_text, write_tables
from alseg.system.plotting import save_png
from alseg.system.text import printable

PIECES = [
    "<script>", "</td>", "&amp;", '"', "'", "%", "_", "$x_1$", "{", "}", "\\", "\\\\", "[red]",
    "[/]", "*", "~", "^", "#", ",", ";", "\n", "\t", "\r", "\x00", "\x1b[2J", "\u202e",
    "\u05d0\u05d1", "\u809d", "🫀", "strategy", "labelled volumes", " ", "lesion", "=1+1",
    "{{ 7*7 }}", "{% if %}",
]  # fmt: skip
pieces = st.sampled_from(PIECES) | st.characters(codec="utf-8")
names = st.lists(pieces, min_size=1, max_size=8).map("".join)


def page_with(name: str) -> str:
    """The template with a name wherever one can stand."""
    table = ShownTable(name, ["strategy", name], [[name, name]], (name,), folded=True)
    section = Section("a", name, [name], command=f"x{name}", tables=[table])
    template = environment().get_template("page.html.j2")
    return template.render(title=name, subtitle="", answer=[name], sections=[section])


def tags_and_text(page: str) -> tuple[list[str], str]:
    """What a browser's parser makes of a page."""
    text: list[str] = []
    tags: list[str] = []
    reader = HTMLParser()
    reader.handle_data = text.append  # type: ignore[method-assign]
    reader.handle_starttag = lambda tag, _: tags.append(tag)  # type: ignore[method-assign]
    reader.feed(page)
    reader.close()
    return tags, "".join(text)


# of cases; file names hold no character that is not printable
case_ids = st.lists(
    st.sampled_from(["NA", "null", "nan", "N/A", "None", "True", "007", "1e5", "=1+1", "#c"])
    | names.filter(lambda name: name.isprintable() and "/" not in name),
    min_size=1,
    unique=True,
)


@settings(max_examples=50, deadline=None)
@given(case_ids)
def test_a_table_gives_back_the_names_of_cases(ids: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cases.csv")
        written = pd.DataFrame({"case_id": ids, "dice_blob": float("nan")})
        path.write_text(written.to_csv(index=False), encoding="utf-8")
        read = read_table(path, {"case_id": str, "dice_blob": float})
    assert list(read["case_id"]) == ids
    assert read["dice_blob"].isna().all()


@settings(max_examples=30, deadline=None)
@given(names)
def test_html_shows_the_name_and_nothing_else(name: str) -> None:
    tags, text = tags_and_text(page_with(name))
    assert tags == tags_and_text(page_with("plain"))[0]
    assert text.count(printable(name)) >= tags_and_text(page_with("plain"))[1].count("plain") > 10


@settings(max_examples=30, deadline=None)
@given(names)
def test_latex_has_no_character_that_it_would_act_on(name: str) -> None:
    cell = pd.DataFrame({"strategy": [name, name], name + " ": ["1", "2"]})
    written = latex(Table("t", name, cell, cell))
    body = written[written.index("\\midrule") : written.index("\\bottomrule")]
    assert body.count("\\\\\n") == 2  # the ends of two rows, none of them with an option
    for row in body.splitlines()[1:3]:
        assert not row.lstrip().startswith(("[", "*"))
    # undone by a table of its own, character by character, it is the name again
    undo = {
        r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textbackslash{}": "\\",
        r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|",
        r"\textquotedbl{}": '"', "{[}": "[", "{]}": "]", "{*}": "*",
    } | {f"\\{c}": c for c in "&%$#_{}"}  # fmt: skip
    rest, found = latex_text(name), ""
    while rest:
        token = next((t for t in undo if rest.startswith(t)), rest[0])
        assert token in undo or token not in "\\{}&%$#_~^"
        found, rest = found + undo.get(token, token), rest[len(token) :]
    assert found == printable(name)


@settings(max_examples=10, deadline=None)
@given(names)
def test_figures_hold_the_name_as_text_without_a_warning(name: str) -> None:
    curves = pd.DataFrame({"strategy": name, "seed": 1, "labelled": [5, 10], "dice": [0.1, 0.2]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        palette = Palette([name], "random", {name: name})
        figure = learning_curves(curves, curves[:0], palette, NARROW)
        root = ElementTree.fromstring(svg_document(figure, "a"))
        save_png(figure, io.BytesIO(), dpi=40)
    text = "".join("".join(e.itertext()) for e in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "".join(printable(name).split()) in "".join(text.split())


@settings(max_examples=25, deadline=None)
@given(names)
def test_csv_gives_the_name_back(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("csv")
    data = pd.DataFrame({"strategy": [name], "dice": [0.5]})
    write_tables([Table("t", "caption", data, data.astype(str))], folder)
    with (folder / "t.csv").open(encoding="utf-8", newline="") as file:
        (back,) = pd.read_csv(file, dtype=str, keep_default_na=False, lineterminator="\n")[
            "strategy"
        ]
    assert back == name.encode("utf-8", "backslashreplace").decode("utf-8")


def test_fifteen_classes_of_long_names_are_all_on_the_page(tmp_path: Path) -> None:
    classes = [
        f"[red]{'portal vein & splenic vein of the liver, segment':<52}{i:02d}_%" for i in range(15)
    ]
    for strategy in ("random", "labelled volumes"):  # which is a heading as well
        history = [
            {k: v for k, v in row.items() if "terior" not in k}
            | {f"test_dice_{c}": row["test_dice"] for c in classes}
            for row in dice_rows(strategy, 1, (5, 10), 0.004)
        ]
        plan = {"initial": 5, "query_size": 5, "rounds": 2}
        write_run(tmp_path / strategy, strategy, 1, history=history, pool=plan)
    comparison = analyse(gather_runs(find_run_folders([tmp_path])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write_page(comparison, tmp_path / "page").read_text(encoding="utf-8")
    for name in classes:
        assert page.count(f"Test Dice of {html.escape(name)}") >= 2
    dice = pd.read_csv(tmp_path / "page" / "tables" / "dice.csv")
    assert set(dice["strategy"]) == {"random", "labelled volumes"}
    written = (tmp_path / "page" / "tables" / "dice.tex").read_text(encoding="utf-8")
    assert "labelled volumes & labelled volumes & random" in written
