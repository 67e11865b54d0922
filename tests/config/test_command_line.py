"""Printed commands can be pasted: shell and Hydra read back what was meant."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from alseg.config.command_line import (
    how_to_quote,
    override_to_paste,
    readable,
    with_later,
    with_run,
)
from alseg.config.composition import composed, instantiate
from tests.system.test_environment import run_command

HOSTILE = st.sampled_from("ab1/.-_=,~'\"\\ ${}[]():#%!&*;?|<>`^@+é日\t")


# OmegaConf's word for a value that is missing, which cannot be quoted: ./??? is the same path
MISSING = "???"


@given(st.text(HOSTILE, min_size=1, max_size=15).filter(lambda value: value != MISSING))
@example("null")
@example("12")
@example("1e3")
@example("日/")
@example("/runs/a=b,c~d 'e'")
@example("\\${x}")
def test_a_pasted_override_means_what_was_printed(value: str) -> None:
    (word,) = shlex.split(override_to_paste("resume", value))
    (parsed,) = OverridesParser.create().parse_overrides([word])
    assert parsed.key_or_group == "resume"
    assert OmegaConf.create({"resume": parsed.value()}).resume == value


@pytest.mark.parametrize(
    "path", ["/work/runs/phantom/2026-11-23_10-00-00_variance_seed1", "runs/a"]
)
def test_an_ordinary_path_stays_readable(path: str) -> None:
    assert override_to_paste("resume", path) == f"resume={path}"


def value_of(argument: str) -> object:
    """What Hydra reads."""
    (parsed,) = OverridesParser.create().parse_overrides([argument])
    return parsed.value()


PLAIN = st.text(st.sampled_from("ab1/.-_=~\\ :#%!&*;?|<>`^@+é日"), min_size=1, max_size=15)


@given(PLAIN.filter(lambda text: not text.startswith("~")))
@example("/data/Größe=1/日本 #2")
def test_a_plain_value_needs_no_quotes_for_hydra(value: str) -> None:
    try:
        expected = value_of(f"x={value}")
    except HydraException:
        expected = value
    assert value_of(readable(f"x={value}")) == expected


@pytest.mark.parametrize(
    "argument",
    [
        "x=1",
        "x=1,2",
        "x=[1,2]",
        "x={a: 1}",
        "x='日'",
        "x=",
        "-m",
        "--cfg",
        "job",
        "~x",
        "x=[1",
        "x=~/a",
    ],
)
def test_what_may_be_meant_otherwise_is_left_as_it_is(argument: str) -> None:
    assert readable(argument) == argument


UNREADABLE = ["a,b", "a(b", "it's", "[日", "{a", '"a', "日,x", "a]b"]


@pytest.mark.parametrize("value", UNREADABLE)
def test_the_cure_for_an_unreadable_value_can_be_pasted(value: str) -> None:
    advice = how_to_quote(f"data.root={value}")
    assert advice.startswith(f"data.root={value} ")
    (word,) = shlex.split(advice.partition("put it in quotes: ")[2])
    assert str(value_of(word)) == value.strip("\"'")


def test_what_cannot_be_read_is_told_by_its_name(tmp_path: Path) -> None:
    advice = {
        "data.root=/tmp/日本(1)": "data.root='/tmp/日本(1)'",
        "data.root=~/x": "write data.root=$HOME/x",
        "strategy=random,variance": "takes a sweep (-m)",
        "日=3": "日=3: no setting can be called 日",
        "foo": "foo is not a setting",
        "data.classes=[left": "the shell cuts at spaces unless the whole setting is in quotes",
    }
    for argument, cure in advice.items():
        done = run_command(tmp_path, "alseg.train", "data=msd", argument, "--cfg", "job")
        assert done.returncode == 2
        assert done.stderr.startswith(f"alseg: error: {argument}")
        assert cure in done.stderr
        assert "hydra.cc" not in done.stderr
    done = run_command(tmp_path, "alseg.train", "data=msd", "data.root=/日本=1", "--cfg", "job")
    assert "root: /日本=1\n" in done.stdout


NAMES = st.text(HOSTILE, max_size=8).filter(lambda value: value != MISSING)


@given(st.lists(NAMES), NAMES)
@example(["${x}", "\\${x}"], "${oc.env:HOME}")
def test_parts_get_the_names_that_they_are_given(names: list[str], name: str) -> None:
    made = instantiate(OmegaConf.create({"_target_": "builtins.dict"}), names=names, name=name)
    assert made == {"names": names, "name": name}


def test_a_run_folder_needs_no_name_in_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    assert with_run(["runs/a", "images=b"]) == ["run='runs/a'", "images=b"]
    assert with_run(["--cfg", "images=b", "runs/a"]) == ["--cfg", "images=b", "runs/a"]
    assert with_run(["lr=3", "images=b"]) == ["run='lr=3'", "images=b"]
    assert with_run(["images=b", "run=a"]) == ["images=b", "run=a"]
    assert with_run(["--help"]) == ["--help"]
    assert with_run([]) == []


@pytest.mark.parametrize(
    ("before", "later", "values"),
    [
        (["oracle=person", "oracle.annotator=Zoe"], ["oracle=person", "oracle.wait=true"],
         {"oracle.annotator": "Zoe", "oracle.wait": True}),
        (["seed=1", "pool.rounds=2"], ["seed=3"], {"seed": 3, "pool.rounds": 2}),
        (["+note=1"], ["note=2"], {"note": 2}),
        (["+note=1", "note=2"], ["+note=3"], {"note": 3}),
        (["~pictures", "seed=1"], ["~pictures"], {"pictures": None, "seed": 1}),
        (["oracle=person", "oracle={annotator: Zoe}"], ["oracle={wait: true}"],
         {"oracle.annotator": "Zoe", "oracle.wait": True}),
        (["pool.rounds=2"], ["pool={rounds: 3}"], {"pool.rounds": 3}),
        (["pool={rounds: 3}", "pool.rounds=2"], ["pool={rounds: 3}"], {"pool.rounds": 3}),
    ],
)  # fmt: skip
def test_what_a_later_command_does_not_name_stays_as_it_was(
    before: list[str], later: list[str], values: dict[str, object]
) -> None:
    config = composed(with_later(before, later))
    assert {name: OmegaConf.select(config, name) for name in values} == values
    twice = with_later(with_later(before, later), later)
    assert twice == with_later(before, later)
