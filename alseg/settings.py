"""The resolved configuration of a run: in its folder, as a hash, as flat names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from alseg.errors import DataError
from alseg.state import write_atomically

CONFIG_FILE = "config.yaml"
# How a run was started, not what it computes.
NOT_HASHED = ("resume", "sweep")


def save_config(config: DictConfig, folder: Path) -> None:
    """Write the resolved configuration into a run folder."""
    write_atomically(folder / CONFIG_FILE, OmegaConf.to_yaml(config, resolve=True))


def load_config(folder: Path) -> DictConfig:
    """Read the resolved configuration of a run folder.

    Raises:
        DataError: if it is missing or broken.
    """
    path = folder / CONFIG_FILE
    try:
        config = OmegaConf.load(path)
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, DictConfig):
        raise DataError(f"{path} does not hold a configuration")
    return config


def config_hash(config: DictConfig) -> str:
    """A hash of the resolved configuration, but for the settings that start or continue a run."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    hashed = {key: value for key, value in content.items() if key not in NOT_HASHED}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    if isinstance(content, Mapping):
        items = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list) and any(isinstance(c, (Mapping, list)) for c in content):
        items = [(str(index), value) for index, value in enumerate(content)]
    else:
        return {prefix: content}
    merged: dict[str, Any] = {}
    for key, value in items:
        merged |= flat(value, f"{prefix}.{key}" if prefix else key)
    return merged
