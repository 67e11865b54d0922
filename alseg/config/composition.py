"""conf/: where it is, what is composed of it, and how its parts are instantiated."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir, utils
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, flag_override

from alseg.config.command_line import job_hash
from alseg.core.errors import ConfigError
from alseg.system.stores import default_store
from alseg.system.text import literal

# What Lightning takes for this process's number as it is imported, whoever has set it.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")

MADE_OF = "_alseg_overrides"  # an attribute of a configuration, none of its settings

PARTS = ("measure", "aggregation", "selector")  # of a strategy


def conf_folder() -> str:
    """The configuration folder: in the package if installed from a wheel, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return str(installed if installed.is_dir() else package.parent / "conf")


def folder_name(folder: object) -> str:
    """The name of a data set's folder, however the path to it is written; nothing is read."""
    return Path(os.path.abspath(str(folder))).name or "data"


def composed_name(name: str, *own: str | None, _parent_: DictConfig) -> str:
    """The name of a strategy in which parts may be exchanged, as ``strategy/selector=power`` does.

    It is ``name`` if the functions of the parts are the strategy's own, else what is exchanged is
    added: ``entropy+selector=power``. So two strategies of other parts never have one name.

    Args:
        name: of the strategy as its YAML composes it.
        own: the functions of its measure, aggregation and selector; None for a part it lacks.
        _parent_: the strategy's configuration.
    """
    for part_name, function in zip(PARTS, own, strict=True):
        target = OmegaConf.select(_parent_, f"{part_name}._target_")
        chosen = None if target is None else str(target).rpartition(".")[2]
        if chosen != function:
            name += f"+{part_name}={chosen}"
    return name


def without_first(values: Any) -> Any:
    """A list without its first value; what is not one yet, such as ``auto``, as it is."""
    plain: Any = OmegaConf.to_container(values) if OmegaConf.is_list(values) else values
    return plain[1:] if isinstance(plain, list) else plain


# For the YAML files that name other files of conf/, and for the names of strategies.
OmegaConf.register_new_resolver("conf_folder", conf_folder, replace=True)
OmegaConf.register_new_resolver("tracking_store", default_store, replace=True)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
OmegaConf.register_new_resolver("length", len, replace=True)
OmegaConf.register_new_resolver("without_first", without_first, replace=True)
OmegaConf.register_new_resolver("job_hash", job_hash, replace=True)
OmegaConf.register_new_resolver("composed_name", composed_name, replace=True)


def composed(overrides: Sequence[str]) -> DictConfig:
    """Compose a configuration of alseg.train, with the running entry point's search path.

    Args:
        overrides: as on the command line; ``overrides_of`` gives them back.
    """
    if GlobalHydra.instance().is_initialized():
        config = compose("config", list(overrides))
    else:
        with initialize_config_dir(conf_folder(), version_base="1.3"):
            config = compose("config", list(overrides))
    vars(config)[MADE_OF] = tuple(overrides)
    return config


def overrides_of(config: DictConfig) -> tuple[str, ...] | None:
    """What ``composed`` made a configuration of.

    None if it was made in another way, is a copy, or was changed since: no overrides say all of it.
    """
    overrides: tuple[str, ...] | None = vars(config).get(MADE_OF)
    if overrides is None or OmegaConf.to_yaml(composed(overrides)) != OmegaConf.to_yaml(config):
        return None
    return overrides


def known_settings() -> tuple[str, ...]:
    """The settings and groups that ``conf/`` has at its top level."""
    hydra = GlobalHydra.instance()
    loader = hydra.config_loader() if hydra.is_initialized() else None
    return _known_settings(str(loader.get_search_path()) if loader else conf_folder())


@functools.cache  # composing takes 0.1 s
def _known_settings(search_path: str) -> tuple[str, ...]:
    return tuple(map(str, composed([])))


def instantiate(node: Any, **arguments: Any) -> Any:
    """Instantiate a configuration node; plain lists and dicts, which libraries check for."""
    if OmegaConf.is_config(node):
        node = _settled(node)
    # Hydra resolves references in the arguments, twice
    return utils.instantiate(node, _convert_="all", **literal(literal(arguments)))


def _settled(node: Any) -> Any:
    """A node whose values are what they stand for, such as a path with a ``${`` in it."""
    content: Any = OmegaConf.to_container(node, resolve=True)
    if "${" not in str(content):
        return node
    node = copy.deepcopy(node)
    items = content.items() if isinstance(content, dict) else enumerate(content)
    with flag_override(node, ["struct", "readonly"], [False, False]):
        for key, value in items:
            node[key] = literal(literal(value))  # instantiate resolves what it has resolved
    return node


def settle_ranks() -> None:
    """Forget ranks in the environment that are not numbers, before Lightning stumbles over them.

    Raises:
        ConfigError: if torchrun has started this process, which then has to have a number.
    """
    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    for name in {*RANKS, *(OF_TORCHRUN if under_torchrun else ())} & set(os.environ):
        value = os.environ[name].strip()
        if value.isascii() and value.isdigit():
            continue
        if under_torchrun and name in OF_TORCHRUN:
            raise ConfigError(
                f"the environment variable {name} is {os.environ[name]!r}, and torchrun gives it a "
                "number; start with torchrun, or unset TORCHELASTIC_RUN_ID for a run of one process"
            )
        del os.environ[name]
