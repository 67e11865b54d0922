"""The finished stages of a round, so that none of them is done twice."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alseg.core.errors import DataError
from alseg.core.units import as_region
from alseg.run.folder import STAGES_FILE
from alseg.system.files import checksum_of, read_json, write_json

log = logging.getLogger(__name__)

EVALUATION = "evaluation"  # the stage in which a round's network has been evaluated
QUERY = "query"  # the stage in which a round has chosen its query
FILES = "files"  # what a stage notes of its files: their checksums by name


class Stages:
    """What the finished stages of a round have given, by their names; kept in ``stages.json``.

    A stage writes its files first and is noted after, with their checksums, so one that is noted is
    complete, and a file of another round is not taken for its own. Where something is damaged, the
    stage and those after it are run again, which a warning says.

    Args:
        folder: the round's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STAGES_FILE
        self._results: dict[str, Any] = {}
        if self.path.is_file():
            try:
                for name, result in read_json(self.path, by_hand=False).items():
                    self._check(name, result)
                    self._results[name] = result
            except DataError as error:
                log.warning(f"{error}; what it is needed for starts again")

    def _check(self, name: str, result: Any) -> None:
        if not _is_result(name, result):
            raise DataError(f"{self.path} does not say what the stage {name} has given")
        for file, checksum in result[FILES].items():
            _check_file(self.path.parent / file, name, checksum)

    def __contains__(self, name: str) -> bool:
        return name in self._results

    def __getitem__(self, name: str) -> dict[str, Any]:
        result: dict[str, Any] = self._results[name]
        return result

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def finish(self, name: str, files: tuple[str, ...] = (), **result: Any) -> dict[str, Any]:
        """Note a stage, with the names of its checkpoints and what it has given: JSON."""
        checksums = {file: checksum_of(self.path.parent / file) for file in files}
        self._results[name] = result | {FILES: checksums}
        write_json(self.path, self._results)
        return result

    def clear(self) -> None:
        """Forget all stages: the round starts again."""
        self._results = {}
        self.path.unlink(missing_ok=True)


def evaluated_columns(folder: Path) -> Mapping[str, float] | None:
    """The columns of metrics.csv that the evaluation of a round has given; None before it.

    Args:
        folder: the round's; it may not be there.
    """
    stages = Stages(folder)
    if EVALUATION not in stages:
        return None
    columns: Mapping[str, float] = stages[EVALUATION]["columns"]
    return columns


def check_unchanged(path: Path) -> None:
    """Check that a file of a finished round is what a stage has left there, where that is noted.

    Raises:
        DataError: naming the file, or ``stages.json``, that is damaged.
    """
    noted = path.parent / STAGES_FILE
    if not noted.is_file():
        return
    for name, result in read_json(noted, by_hand=False).items():
        if not _is_result(name, result):
            raise DataError(f"{noted} does not say what the stage {name} has given")
        if path.name in result[FILES]:
            _check_file(path, name, result[FILES][path.name])


def _check_file(path: Path, stage: str, checksum: object) -> None:
    if not path.is_file():
        raise DataError(f"there is no {path}, which {stage} has left: it has been removed")
    if checksum_of(path) != checksum:
        raise DataError(f"{path} is damaged: it is not what {stage} has left there")


def _is_result(name: str, result: Any) -> bool:
    """Whether a stage's result holds what the round takes from it."""
    if not isinstance(result, Mapping) or not isinstance(result.get(FILES), Mapping):
        return False
    if not isinstance(result.get("seconds"), int | float):
        return False
    if name == EVALUATION:
        columns = result.get("columns")
        return isinstance(columns, Mapping) and all(
            isinstance(value, int | float) for value in columns.values()
        )
    if name == QUERY:
        return _is_query(result.get("units"))
    if not isinstance(result.get("skipped_steps"), int):
        return False
    if name.startswith("fold_"):
        return _is_metrics(result.get("metrics"))
    return name != "training" or isinstance(result.get("best_dice"), int | float | None)


def _is_metrics(metrics: Any) -> bool:
    """Whether it is a row of numbers for each case."""
    return isinstance(metrics, Mapping) and all(
        isinstance(row, list) and all(isinstance(value, int | float) for value in row)
        for row in metrics.values()
    )


def _is_query(units: Any) -> bool:
    """Whether it is a list of units with their scores."""
    return isinstance(units, list) and all(
        isinstance(unit, Mapping)
        and isinstance(unit.get("case_id"), str)
        and isinstance(unit.get("score"), int | float | None)
        and _is_region(unit.get("region", ""))
        for unit in units
    )


def _is_region(edges: Any) -> bool:
    """Whether it is a box, or None for a whole volume."""
    try:
        return edges is None or bool(as_region(edges))
    except (ValueError, TypeError):
        return False
