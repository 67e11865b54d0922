"""Settings that earlier versions had under other names: they are reported, not translated."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from alseg.core.errors import ConfigError

# old name -> the name that it has now
MOVED = {
    "scoring.n_passes": "uncertainty.n_passes",
    "scoring.passes": "uncertainty.passes",
    "scoring.error_rate": "uncertainty.error_rate",
    "scoring.gate": "uncertainty.gate",
    "uncertainty.schedule": "uncertainty.passes",
}


def moved(names: Iterable[str]) -> str:
    """What has become of those of some settings that have moved; empty if none has.

    Args:
        names: dotted names of settings, as on the command line.
    """
    return ", ".join(f"{name} is now {MOVED[name]}" for name in names if name in MOVED)


def moved_in(message: str) -> str:
    """The same for the settings that a message has in quotes."""
    return moved(re.findall(r"'([\w.]+)'", message))


def check_moved(names: Iterable[str], source: Path) -> None:
    """Check that a run folder has no setting that has moved.

    Args:
        names: dotted names of its settings.
        source: its config.yaml.

    Raises:
        ConfigError: naming those that have.
    """
    if now := moved(names):
        raise of_an_earlier_version(source, now)


def of_an_earlier_version(source: Path, what: str) -> ConfigError:
    """The error that a run folder's file was made by an earlier version, and how that shows."""
    return ConfigError(
        f"{source} was made by an earlier version of alseg: {what}; continue with that version, "
        "which provenance.json beside it names, or start the run again"
    )
