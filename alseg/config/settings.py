"""The resolved configuration of a run: in its folder, as a hash, as flat names."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from alseg.config.command_line import with_later
from alseg.core.errors import ConfigError, DataError
from alseg.run.folder import CONFIG_FILE, START_FILE
from alseg.system.files import read_json, write_atomically, write_json
from alseg.system.secrets import kept_settings, refer_to_secrets, with_live_references
from alseg.system.text import literal

# What may change when a run is resumed: where things are, what computes them, what is shown.
FREE = (
    "resume",
    "resume_force",
    "trusted_packages",
    "sweep",
    "output_dir",
    "cache_dir",
    "data.name",
    "data.plan",
    "data.root",
    "data.task.root",
    "data.splits.root",
    "data.phantom.root",
    "data.num_workers",
    "trainer",
    "tracking",
    "experiment_name",
    "checkpoint_every_n_steps",
    "on_nonfinite",
    "oracle.annotator",
    "oracle.accept",
    "oracle.accept_unrequested",
    "oracle.wait",
    "oracle.poll_seconds",
    "oracle.settle_seconds",
    "pictures",
    "save_maps",
    "target_dice",
)


@dataclass(frozen=True)
class Start:
    """How a run was started: what it takes to compose its settings again, from anywhere.

    Attributes:
        folder: where; relative paths in the settings start there.
        overrides: the command's, and those of the commands that have resumed the run since; None
            if a program had changed the configuration, so that no overrides say all of it.
    """

    folder: str
    overrides: tuple[str, ...] | None


def save_start(folder: Path, overrides: Sequence[str] | None, *, at: str | None = None) -> None:
    """Note in a run folder how the run is started.

    Args:
        folder: the run folder.
        overrides: what its settings are composed of; None if that is not known.
        at: the folder where relative paths in the settings start; None for the working folder.
    """
    noted = None if overrides is None else refer_to_secrets(overrides)
    write_json(folder / START_FILE, {"folder": at or os.getcwd(), "overrides": noted})


def add_to_start(folder: Path, overrides: Sequence[str]) -> None:
    """Note in a run folder with which overrides the run is resumed, for the next time it is.

    Raises:
        ConfigError: if its overrides are not known.
        DataError: if it is not noted there how the run was started, or the note is damaged.
    """
    before, start = known_overrides(folder), load_start(folder)
    save_start(folder, with_later(before, overrides), at=start.folder)


def known_overrides(folder: Path) -> tuple[str, ...]:
    """The overrides that the run in a folder was started and resumed with.

    Raises:
        ConfigError: if they are not known, so that others cannot be added.
        DataError: if it is not noted there how the run was started, or the note is damaged.
    """
    overrides = load_start(folder).overrides
    if overrides is None:
        raise ConfigError(
            f"the run in {folder} cannot be resumed with other settings: the configuration that it "
            "was started with in Python was not as composed([...]) had made it; resume it without "
            "changes, or start another run that has all settings in composed([...])"
        )
    return overrides


def load_start(folder: Path) -> Start:
    """How the run in a folder was started.

    Raises:
        DataError: if it is not noted there, or the note is damaged.
    """
    path = folder / START_FILE
    content = read_json(path)
    start, overrides = content.get("folder"), content.get("overrides")
    is_known = "overrides" in content and isinstance(overrides, list | None)
    if not isinstance(start, str) or not is_known:
        raise DataError(f"{path} does not say how the run was started")
    return Start(start, None if overrides is None else tuple(map(str, overrides)))


@contextmanager
def started_in(folder: Path) -> Iterator[None]:
    """Go to where the run was started, for the relative paths in its settings."""
    start = Path(load_start(folder).folder) if (folder / START_FILE).is_file() else Path.cwd()
    with chdir(start if start.is_dir() else Path.cwd()):
        yield


def save_config(config: DictConfig, folder: Path) -> None:
    """Write the resolved configuration, with references for secrets, into a run folder."""
    write_atomically(
        folder / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(kept_settings(config)))
    )


def load_config(folder: Path) -> DictConfig:
    """Read the resolved configuration of a run folder.

    A ``${`` in it means nothing any more, except for references to secrets of alseg's own kind.

    Raises:
        DataError: if it is missing or broken.
    """
    path = folder / CONFIG_FILE
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, DictConfig) or not config:
        raise DataError(f"{path} holds no settings")
    return OmegaConf.create(literal(OmegaConf.to_container(config), with_live_references))


def config_hash(config: DictConfig) -> str:
    """A hash of the settings that a run's results depend on."""
    return hashlib.sha256(json.dumps(result_settings(config), sort_keys=True).encode()).hexdigest()[
        :16
    ]


def result_settings(config: DictConfig) -> dict[str, Any]:
    """The settings, by dotted names, that a run may not change half-way."""
    settings = flat(kept_settings(config))
    return {
        name: value
        for name, value in settings.items()
        if not any(name == free or name.startswith(f"{free}.") for free in FREE)
    }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """``setting: old -> new`` for each setting that differs."""
    missing = object()

    def shown(value: object) -> str:
        return "not there" if value is missing else str(value)

    names = [*before, *(name for name in after if name not in before)]
    pairs = ((name, before.get(name, missing), after.get(name, missing)) for name in names)
    return [f"{name}: {shown(old)} -> {shown(new)}" for name, old, new in pairs if old != new]


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    if isinstance(content, Mapping):
        items = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list) and any(isinstance(c, (Mapping, list)) for c in content):
        items = [(str(index), value) for index, value in enumerate(content)]
    else:
        # Hydra reads evaluation.absent=nan as a number that is not equal to itself
        is_nan = isinstance(content, float) and math.isnan(content)
        return {prefix: "nan" if is_nan else content}
    merged: dict[str, Any] = {}
    for key, value in items:
        merged |= flat(value, f"{prefix}.{key}" if prefix else key)
    return merged
