"""Each choice of a group goes with each choice of every other group."""

from __future__ import annotations

import inspect
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from alseg.config.composition import conf_folder, instantiate
from tests.planning.builders import with_a_plan

CONF = Path(conf_folder())
CASES = [f"case_{n:02d}" for n in range(20)]
LAUNCHERS = ["basic", "joblib", "ray", "slurm", "submitit_local"]
# Any choice may write and read it: all strategies have a name.
ANYONES = "strategy.name"

Choice = tuple[str, str]  # a group and its choice


@cache
def options() -> dict[str, list[str]]:
    """The choices of each group, as the README offers them.

    The parts of strategies have a test of their own, tests/config/test_strategy_parts.py.
    """
    groups: dict[str, list[str]] = {}
    for path in sorted(CONF.rglob("*.yaml")):
        group = path.parent.relative_to(CONF).as_posix()
        if group != "." and not group.startswith(("hydra", "strategy/")):
            groups.setdefault(group, []).append(path.stem)
    return groups | {"hydra/launcher": LAUNCHERS}


@cache
def writes_and_reads(group: str, choice: str) -> frozenset[str]:
    """The settings, by dotted names, that a choice and those it is made of write or refer to."""
    path = CONF / group / f"{choice}.yaml"
    if not path.is_file():
        return frozenset()
    text = path.read_text()
    content = yaml.safe_load(text) or {}
    package = "" if "@package _global_" in text else group.replace("/", ".") + "."
    parents = [d for d in content.pop("defaults", []) if isinstance(d, str) and d != "_self_"]
    names = {f"{package}{name}" for name in leaves(content)}
    names |= set(re.findall(r"\$\{([\w.]+)\}", text))
    return frozenset(names).union(*(writes_and_reads(group, parent) for parent in parents))


def leaves(content: Any) -> Iterator[str]:
    """The dotted names of all values in nested dicts."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from (f"{key}.{name}" for name in leaves(value))
        else:
            yield str(key)


def part_of(setting: str) -> str:
    """The group whose part of the configuration a setting is in; empty for none."""
    groups = sorted(options(), key=len, reverse=True)  # data/splits before data
    return next((g for g in groups if setting.startswith(g.replace("/", ".") + ".")), "")


def touches(choice: Choice, group: str) -> bool:
    """Whether a choice writes into another group's part of the configuration, or reads there."""
    return any(part_of(name) == group for name in writes_and_reads(*choice) - {ANYONES})


def choices() -> list[Choice]:
    return [(group, name) for group, names in options().items() for name in names]


def touching() -> set[frozenset[Choice]]:
    """All pairs of choices one of which touches the other; no others can be at odds."""
    return {
        frozenset((one, other))
        for one, other in itertools.permutations(choices(), 2)
        if one[0] != other[0] and touches(one, other[0])
    }


def pairs(row: Iterable[Choice]) -> set[frozenset[Choice]]:
    return {frozenset(pair) for pair in itertools.combinations(row, 2)}


def rows() -> list[dict[str, str]]:
    """Combinations, one choice a group, with each choice and each touching pair in one of them."""
    draws = random.Random(0)
    missing = touching() | {frozenset([choice]) for choice in choices()}
    found = []
    while missing:
        wanted = dict(min(missing, key=lambda pair: (-len(pair), sorted(pair))))
        drawn = (
            {group: wanted.get(group) or draws.choice(names) for group, names in options().items()}
            for _ in range(30)
        )
        row = max(drawn, key=lambda row: len(missing & pairs(row.items())))
        missing -= pairs(row.items()) | {frozenset([choice]) for choice in row.items()}
        found.append(row)
    return found


def overrides(row: dict[str, str], split_file: Path) -> list[str]:
    """The command line of a combination, which names the folder and the file that it has to."""
    extra = ["data.root=x"] if row["data"] != "phantom" else []
    if row["data/splits"] == "file" and row["data"] != "msd_liver":
        extra.append(f"data.split_file={split_file}")
    # ahead, so that an experiment's own choices are overridden
    return [f"{group}={name}" for group, name in row.items()] + extra


def case_ids(config: DictConfig) -> list[str]:
    """Cases of the data set; the liver's are those of the split file that comes with it."""
    return [f"liver_{n}" for n in range(131)] if config.data.name == "liver" else CASES


@cache
def built(content: str, **arguments: int) -> None:
    """Build a part as JSON, once."""
    instantiate(OmegaConf.create(json.loads(content)), **arguments)


def check_keywords(node: DictConfig) -> None:
    """Check that the function of a node takes its settings; it is not called."""
    settings = {str(k): v for k, v in node.items() if not str(k).startswith("_")}
    inspect.signature(get_object(node._target_)).bind(**settings)


def check(config: DictConfig) -> None:
    """Build all parts of a configuration that need no data and no device."""
    resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    instantiate(resolved.data.splits, case_ids=case_ids(resolved))
    check_keywords(resolved.data.task)
    for tracker in resolved.tracking.values():
        check_keywords(tracker)
    if resolved.data.name == "phantom":
        check_keywords(resolved.data.phantom)
    for node in (
        *(resolved.data[name] for name in ("preprocess", "augment", "inferer", "scoring_inferer")),
        *(resolved.training[name] for name in ("loss", "optimizer", "schedule")),
        *(
            resolved[name]
            for name in (
                "strategy",
                "uncertainty",
                "semi_supervised",
                "proxy",
                "oracle",
                "validation",
            )
        ),
        resolved.trainer,
    ):
        if isinstance(node, (DictConfig, ListConfig)):
            built(json.dumps(OmegaConf.to_container(node)))
    network = json.dumps(OmegaConf.to_container(resolved.model.network))
    built(network, in_channels=1, out_channels=3)


@pytest.fixture
def split_file(tmp_path: Path) -> Path:
    path = tmp_path / "split.json"
    parts = {"training": CASES[:14], "validation": CASES[14:17], "test": CASES[17:]}
    path.write_text(json.dumps(parts))
    return path


def test_each_choice_goes_with_each_other(split_file: Path) -> None:
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        for row in rows():
            command = overrides(row, split_file)
            try:
                check(with_a_plan(compose("config", command)))
            except Exception as error:
                pytest.fail(f"{' '.join(command)}: {error}")


def test_validate_takes_each_split_of_each_data_set(split_file: Path) -> None:
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        for data, splits in itertools.product(options()["data"], options()["data/splits"]):
            row = {"data": data, "data/splits": splits}
            config = with_a_plan(compose("validate", overrides(row, split_file)))
            OmegaConf.to_container(config, resolve=True)
            check_keywords(config.data.task)
            instantiate(config.data.splits, case_ids=case_ids(config))


def test_what_touches_what_is_found() -> None:
    found = touching()
    assert frozenset([("experiment", "demo"), ("data", "msd")]) in found  # it sets data.patch_size
    assert frozenset([("data/splits", "file"), ("data", "nnunet")]) in found  # reads split_file
    assert frozenset([("experiment", "papers_study_mi"), ("trainer", "ddp")]) in found  # inherited
    assert frozenset([("model", "unet"), ("strategy", "random")]) not in found
    assert {a for pair in found for a in pair} > {("data", name) for name in options()["data"]}
