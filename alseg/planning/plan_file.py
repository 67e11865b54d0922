"""plan.yaml: a setting a line, with its reason behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from alseg.core.errors import ConfigError, DataError, nearest
from alseg.planning.plan import Plan
from alseg.planning.rules import MIN_LEVELS
from alseg.system.files import write_atomically
from alseg.system.text import printable

MAX_BYTES = 1_000_000
Count = Annotated[int, Field(gt=0, strict=True)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Edge = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Counts = Annotated[list[Count], Field(min_length=3, max_length=3)]
Level = Annotated[list[Counts], Field(min_length=MIN_LEVELS)]
# what a plan gives a value, and of which kind
KINDS: dict[str, Any] = {
    "data.spacing_mm": Annotated[list[Edge], Field(min_length=3, max_length=3)],
    "data.intensities": list[dict[str, Any]],
    "data.patch_size": Counts,
    "model.strides": Level,
    "model.kernel_size": Level,
    "model.filters": Annotated[list[Count], Field(min_length=MIN_LEVELS)],
    "data.batch_size": Count,
    "data.scoring_window": Counts,
    "data.crop_ratios": Annotated[list[Amount], Field(min_length=2)],
    "data.rotate_range": Annotated[list[Amount], Field(min_length=3, max_length=3)],
    "data.scale_range": Annotated[list[Amount], Field(min_length=3, max_length=3)],
    "steps_per_round": Count,
    "val_interval": Count,
}


def check_value(name: str, value: Any, source: str = "") -> None:
    """Check that a setting of a plan is of its kind.

    Args:
        name: of ``KINDS``.
        value: what was given.
        source: of the value, for the message; empty for the command.

    Raises:
        ConfigError: saying what it must be.
    """
    try:
        TypeAdapter(KINDS[name]).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" for part in first["loc"])
        raise ConfigError(
            f"{source}{': ' if source else ''}{name} is {value!r}; {name}{place}: {first['msg']}"
        ) from error


def as_yaml(plan: Plan) -> str:
    """A plan as text: comments on what it is made from, then a setting and its reason a line."""
    return "\n".join([*(f"# {printable(line)}" for line in plan.title), *_lines(plan), ""])


def _lines(plan: Plan) -> Iterator[str]:
    for name, value in plan.values.items():
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
        reason = plan.reasons.get(name, "")
        line = f"{name}: {text.removesuffix('...' + chr(10)).strip()}"
        yield f"{line} # {printable(reason)}" if reason else line


def write_plan(path: Path, plan: Plan) -> None:
    """Write plan.yaml.

    Raises:
        StorageError: if that is not possible.
    """
    write_atomically(path, as_yaml(plan))


def read_plan(path: Path) -> Plan:
    """Read a plan that somebody may have edited.

    Raises:
        DataError: if the file is missing or no YAML.
        ConfigError: naming the first setting that no plan has, or that is of another kind.
    """
    if not path.is_file():
        raise DataError(f"data.plan is {path}, which is no file")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path} is larger than {MAX_BYTES} bytes; it is no plan")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path} is no plan, as it cannot be read as YAML: {error}") from error
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise DataError(
            f"{path} is no plan: it must have a setting a line, such as val_interval: 5"
        )
    for name, value in content.items():
        if name not in KINDS:
            raise ConfigError(
                f"{path} has the setting {name!r}, which no plan has; {nearest(name, KINDS)}"
                f"allowed are {', '.join(KINDS)}"
            )
        check_value(name, value, str(path))
    return Plan(dict(content))
