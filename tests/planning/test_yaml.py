"""conf/data/auto.yaml names each number of the rules."""

from dataclasses import fields
from pathlib import Path

import yaml

from alseg.config.composition import conf_folder
from alseg.planning.numbers import Numbers


def test_each_number_can_be_set_on_the_command_line() -> None:
    text = Path(conf_folder(), "data", "auto.yaml").read_text(encoding="utf-8")
    rules = yaml.safe_load(text)["data"]["rules"]
    assert set(rules) == {field.name for field in fields(Numbers)}
    assert set(rules.values()) == {None}  # they have one place
