"""Settings that runs of earlier versions do not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AS_BEFORE = {"evaluation.networks": 1}  # name -> the value that is what those versions did


def with_as_before(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run by dotted names, completed by what its version of alseg did."""
    return AS_BEFORE | dict(settings)
