"""Which cases belong together, such as two scans of one patient.

A regular expression of case ids, ``data.groups``, says it: what it finds at the beginning of an id,
the first bracket of it if it has one, names the group. ``patient\\d+`` puts ``patient001_frame01``
and ``patient001_frame02`` into one. A case in which it finds nothing is a group of its own, and so
is each case where there is no expression.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from alseg.core.errors import ConfigError


def grouped_by(pattern: str | None) -> Callable[[str], str]:
    """What gives a case's id the name of its group.

    Args:
        pattern: the regular expression; None where each case is a group of its own.

    Raises:
        ConfigError: if it is no regular expression.
    """
    if pattern is None:
        return str
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigError(
            f"data.groups is {pattern!r}; it must be a regular expression of case ids, such as "
            f"'patient\\d+', or null ({error})"
        ) from error

    def name(case_id: str) -> str:
        found = compiled.match(case_id)
        group = None if found is None else found.group(1 if compiled.groups else 0)
        return group or case_id

    return name


def members_by_group(case_ids: Iterable[str], pattern: str | None) -> dict[str, list[str]]:
    """The cases of each group, both in the order in which they are given."""
    group_of = grouped_by(pattern)
    members: dict[str, list[str]] = {}
    for case_id in case_ids:
        members.setdefault(group_of(case_id), []).append(case_id)
    return members
