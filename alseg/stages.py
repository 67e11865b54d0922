"""The finished stages of a round, so that none of them is done twice."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alseg.errors import DataError
from alseg.files import read_json, write_json

log = logging.getLogger(__name__)

STAGES_FILE = "stages.json"


class Stages:
    """What the finished stages of a round have given, by their names; kept in ``stages.json``.

    A stage writes its files first and is noted after, so one that is noted is complete.

    Args:
        folder: the round's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STAGES_FILE
        self._results: dict[str, Any] = {}
        if self.path.is_file():
            try:
                self._results = read_json(self.path)
            except DataError as error:
                log.warning(f"{error}; the round starts again")

    def __contains__(self, name: str) -> bool:
        return name in self._results

    def __getitem__(self, name: str) -> dict[str, Any]:
        result: dict[str, Any] = self._results[name]
        return result

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def finish(self, name: str, **result: Any) -> dict[str, Any]:
        """Note a stage, with what it has given: JSON."""
        self._results[name] = result
        write_json(self.path, self._results)
        return result

    def clear(self) -> None:
        """Forget all stages: the round starts again."""
        self._results = {}
        self.path.unlink(missing_ok=True)
