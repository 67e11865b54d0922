"""Printed commands can be pasted: shell and Hydra read back what was meant."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from alseg.command_line import override_to_paste

HOSTILE = st.sampled_from("ab1/.-_=,~'\"\\ ${}[]():#%!&*;?|<>`^@+é日\t")


@given(st.text(HOSTILE, min_size=1, max_size=15))
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
