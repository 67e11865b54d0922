"""Gives the settings that are ``auto`` the values of a plan, before anything is built of them.

So the configuration of a run holds plain numbers: resuming it plans nothing. A setting that the
command gives is not ``auto`` any more, so it wins, and the rest is planned round it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, flag_override

from alseg.config.build import build_oracle, build_splits, build_task
from alseg.config.trust import check_targets
from alseg.core.errors import ConfigError, check_names, check_text
from alseg.data.task import Task
from alseg.planning.budget import budget_of
from alseg.planning.facts import facts_of
from alseg.planning.plan import AUTO, Plan, make_plan
from alseg.planning.plan_file import KINDS, check_value, read_plan, write_plan
from alseg.planning.rules import Sizes, divisors
from alseg.run.folder import PLAN_FILE
from alseg.system.distributed import from_first, rank
from alseg.system.text import literal

OTHER_NETWORKS = (16, 16, 16)  # what networks of conf/model divide patches by, at most


def planned(config: DictConfig, folder: Path, *, kept: bool = False) -> DictConfig:
    """The configuration of a run with the values of its plan, which is left as plan.yaml.

    Args:
        config: the composed configuration.
        folder: the run folder.
        kept: take the plan that is in the folder already, if there is one.

    Returns:
        The same configuration, if nothing in it is ``auto``.

    Raises:
        AlsegError: if images or plan.yaml cannot be used.
    """
    if not open_settings(config):
        return config
    path = folder / PLAN_FILE
    if kept and path.is_file():
        return filled(config, read_plan(path), str(path))
    plan = from_first(plan_of(config, folder) if rank() == 0 else None)
    if rank() == 0:
        write_plan(path, plan)
    return filled(config, plan, "the plan")


def same_plan(config: DictConfig, saved: DictConfig) -> bool:
    """Whether a configuration asks for the plan that a run was started with."""
    return all(config.data.get(name) == saved.data.get(name) for name in ("plan", "rules"))


def open_settings(config: DictConfig) -> list[str]:
    """The settings that a plan is to give a value."""
    return [name for name in KINDS if _setting(config, name) == AUTO]


def plan_of(
    config: DictConfig, folder: Path, *, unlabelled: bool = False, task: Task | None = None
) -> Plan:
    """The plan of a configuration: that of ``data.plan``, or one made from the images.

    Args:
        config: the composed configuration.
        folder: of the run; nothing is written there.
        unlabelled: see ``training_cases``.
        task: the data set, where it has been read already; None to read it.
    """
    file = config.data.get("plan")
    if file is not None:
        check_text("data.plan", file)
        plan = read_plan(Path(file).expanduser())
        transforms = plan.values.get("data.intensities")
        named = config.get("trusted_packages") or []
        check_names("trusted_packages", named)
        check_targets({"data": {"intensities": transforms}}, Path(file), named)
        return Plan({**plan.values, **given_settings(config)})
    task = task or build_task(config)
    changes = OmegaConf.to_container(config.data.get("rules") or OmegaConf.create({}))
    assert isinstance(changes, dict)
    accelerator = config.trainer.accelerator if "trainer" in config else "auto"
    budget = budget_of(accelerator, {str(k): v for k, v in changes.items()})
    facts = facts_of(task, training_cases(config, task, folder, unlabelled=unlabelled))
    plan = make_plan(facts, budget, given_settings(config), network_divisor(config))
    known = {name: value for name, value in plan.values.items() if _has(config, name)}
    return Plan(known, plan.reasons, plan.title)


def training_cases(
    config: DictConfig, task: Task, folder: Path, *, unlabelled: bool = False
) -> Sequence[str]:
    """The cases that a run may train on; a check of a data set, which has no oracle, sees all.

    Args:
        config: the composed configuration.
        task: the data set.
        folder: of the run.
        unlabelled: give all cases where none has a label, whoever is to annotate them.

    Raises:
        DataError: if the oracle can annotate none, or one to evaluate on has no label.
    """
    if "oracle" not in config or (unlabelled and not task.labelled):
        return list(task.cases)
    return build_splits(config, task, build_oracle(config, task, folder)).training


def given_settings(config: DictConfig) -> dict[str, Any]:
    """The settings of a plan that somebody else has decided.

    Raises:
        ConfigError: if one is of the wrong kind.
    """
    found = {name: _setting(config, name) for name in KINDS if _has(config, name)}
    given = {name: value for name, value in found.items() if value != AUTO}
    for name, value in given.items():
        check_value(name, value)
    return given


def network_divisor(config: DictConfig) -> Sizes | None:
    """[3] by what a network that is not of the plan divides patches; None for the plan's."""
    if _setting(config, "model.strides") == AUTO:
        return None
    strides = _setting(config, "model.network.strides")
    if isinstance(strides, Sequence) and not isinstance(strides, str):
        return divisors(strides)
    return OTHER_NETWORKS


def filled(config: DictConfig, plan: Plan, source: str) -> DictConfig:
    """A configuration whose settings that were ``auto`` have the values of a plan.

    The transforms of ``data.intensities`` become members of ``data.preprocess``, in place of the
    reference to them.

    Raises:
        ConfigError: if the plan lacks one.
    """
    config = copy.deepcopy(config)
    for name in open_settings(config):
        if name not in plan.values:
            raise ConfigError(f"{source} lacks {name}, which is {AUTO}")
        value = literal(plan.values[name])
        with flag_override(config, "struct", False):
            OmegaConf.update(config, name, value, merge=False)
    transforms: Any = OmegaConf.to_container(config.data.preprocess, resolve=True)
    if any(isinstance(node, list) for node in transforms):
        flat = [n for node in transforms for n in (node if isinstance(node, list) else [node])]
        config.data.preprocess = literal(flat)
    return config


def _has(config: DictConfig, name: str) -> bool:
    return OmegaConf.select(config, name) is not None


def _setting(config: DictConfig, name: str) -> Any:
    value = OmegaConf.select(config, name)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
