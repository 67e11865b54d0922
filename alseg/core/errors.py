"""The errors that a user can act on."""

from __future__ import annotations

import errno
import math
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any


class AlsegError(Exception):
    """Something the user can fix: bad data, a bad setting, a missing device.

    The message is one clear sentence that names the file or the setting and what is allowed. Entry
    points print it without a traceback and end with exit code 2; set ``ALSEG_TRACEBACK=1`` to see
    where it was raised.
    """


class DataError(AlsegError):
    """A file or a folder of the data set is missing, broken or contradicts another one."""


class ConfigError(AlsegError):
    """A setting is missing, out of range, or contradicts another one."""


class PrecisionError(ConfigError):
    """The device gives wrong numbers in the precision that is asked for.

    Args:
        reason: what gives them; ``args[0]``. The message adds what helps.
    """

    def __str__(self) -> str:
        """The sentence."""
        return f"{super().__str__()}; use trainer.precision=32-true"


class ScoringError(AlsegError):
    """A case got no usable acquisition score."""


class NotAnnotatedYetError(AlsegError):
    """The oracle has not annotated all that it was asked for: no failure, the run is to be resumed.

    Attributes:
        resume: the arguments that resume the run; empty where there is none.
    """

    def __init__(self, case_ids: Sequence[str], what_to_do: str = "", resume: str = "") -> None:
        names = f"{', '.join(case_ids[:5])}{', ...' * (len(case_ids) > 5)}"
        super().__init__(
            what_to_do or f"not annotated yet: {names}; resume the run once the labels are there"
        )
        self.resume = resume


class TrainingError(AlsegError):
    """Training cannot continue."""


class ProcessLostError(AlsegError):
    """Another process of a run on several devices is gone."""


class JobLostError(AlsegError):
    """A job on a cluster has ended without a result."""


class StorageError(AlsegError):
    """A file cannot be written."""


class DiskFullError(StorageError):
    """The disk is full; the run can continue once there is room."""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def nearest(name: str, allowed: Collection[str]) -> str:
    """A hint for a name that is not among the allowed ones; empty if none is near."""
    match = get_close_matches(name, list(allowed), n=1)
    return f"did you mean {match[0]}? " if match else ""


def check_whole_number(name: str, value: object, at_least: int) -> None:
    """Check a setting that counts something.

    Raises:
        ConfigError: if it is not a whole number, or too small.
    """
    if type(value) is not int or value < at_least:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {at_least}")


def check_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    or_null: bool = False,
) -> None:
    """Check a setting that is a quantity: a finite number within the limits that are given.

    Args:
        name: of the setting.
        value: of the setting.
        above: it must be larger than this.
        at_least: the smallest that is allowed.
        below: it must be smaller than this.
        at_most: the largest that is allowed.
        or_null: whether None is allowed as well.

    Raises:
        ConfigError: if it is not a number, or out of range.
    """
    if value is None and or_null:
        return
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    ):
        return
    limits = {"above": above, "of at least": at_least, "below": below, "at most": at_most}
    range_ = " and ".join(f"{word} {limit}" for word, limit in limits.items() if limit is not None)
    kind = "null or a number" if or_null else "a number"
    raise ConfigError(f"{name} is {value!r}; it must be {kind} {range_}")


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Check a setting that is one of a few names.

    Raises:
        ConfigError: if it is none of them.
    """
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")


def check_flag(name: str, value: object) -> None:
    """Check a setting that is on or off.

    Raises:
        ConfigError: if it is neither true nor false.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it must be true or false")


def check_text(name: str, value: object) -> None:
    """Check a setting that is a name or a path.

    Raises:
        ConfigError: if it is not text, or empty.
    """
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name} is {value!r}; it must be text (quote a number: '\"3\"')")


def check_names(name: str, value: object) -> None:
    """Check a setting that is a list of names.

    Raises:
        ConfigError: if it is none.
    """
    names = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [None]
    if not all(isinstance(each, str) for each in names):
        raise ConfigError(f"{name} is {value!r}; it must be a list of names, such as [my_measures]")


def check_part(name: str, value: Any, kind: type) -> None:
    """Check that a setting has built what it must build.

    Raises:
        ConfigError: if it has not.
    """
    if not isinstance(value, kind):
        raise ConfigError(
            f"{name} builds {value!r}; through its _target_ it must build a part of type "
            f"{kind.__name__}"
        )
