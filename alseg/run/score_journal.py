"""Scores are kept one by one: a scoring pass that is interrupted continues where it was."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alseg.core.units import as_region
from alseg.strategies.strategy import CaseScore, feature_vector
from alseg.system.distributed import gathered, rank
from alseg.system.files import name_file_in_errors, write_atomically

log = logging.getLogger(__name__)


class ScoreFile:
    """A round's scores while they come in, a line a group: a checksum and their fields.

    A group is one volume, or its regions. Its line reaches the operating system before the next
    volume is looked at. A line that was cut off or changed is left out, and its volumes are scored
    again.

    Under torchrun each process has a file of its own, and the first one reads them all: the number
    of processes may change in between.

    Args:
        folder: the round's.
        network: the checksum of the network that scores; another one's scores do not count.
    """

    def __init__(self, folder: Path, network: str) -> None:
        self.folder = folder
        self.network = network
        self.path = folder / f"partial_scores_{rank()}.jsonl"

    def read(self) -> list[list[CaseScore]]:
        """All processes' groups so far; in all processes."""
        groups: list[list[CaseScore]] = []
        for path in sorted(self.folder.glob("partial_scores_*.jsonl")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            for number, line in enumerate(lines, start=1):
                group = self._parsed(line)
                if group is not None:
                    groups.append(group)
                elif number < len(lines):  # a last line that is cut off is not worth a report
                    log.warning(f"line {number} of {path} is damaged; it is scored again")
        gathered(None)  # all have read
        return groups

    def start(self, groups: Iterable[Sequence[CaseScore]]) -> None:
        """Begin again with these groups, as ``read`` has given them."""
        if rank() == 0:
            write_atomically(self.path, "".join(map(self._line, groups)))
            for path in self.folder.glob("partial_scores_*.jsonl"):
                if path != self.path:
                    path.unlink(missing_ok=True)
        gathered(None)  # before the others begin theirs

    def append(self, group: Sequence[CaseScore]) -> None:
        """Add a group, if it is not empty.

        Raises:
            StorageError: if it cannot be written.
        """
        if group:
            with name_file_in_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(self._line(group))

    def delete(self) -> None:
        """Delete the file: all volumes have been scored, or all are to be scored again."""
        self.path.unlink(missing_ok=True)

    def _line(self, group: Sequence[CaseScore]) -> str:
        content = json.dumps([asdict(score) for score in group], default=list)
        return f"{self._checksum(content)} {content}\n"

    def _parsed(self, line: str) -> list[CaseScore] | None:
        checksum, _, content = line.partition(" ")
        if checksum != self._checksum(content):
            return None
        try:
            return [_score(fields) for fields in json.loads(content)]
        except (ValueError, TypeError, AttributeError):
            return None

    def _checksum(self, content: str) -> str:
        return f"{zlib.crc32(content.encode(), zlib.crc32(self.network.encode())):08x}"


def _score(fields: dict[str, Any]) -> CaseScore:
    for name, value in fields.items():
        fields[name] = tuple(value) if isinstance(value, list) else value
    if fields.get("region") is not None:
        fields["region"] = as_region(fields["region"])
    if fields.get("features") is not None:
        fields["features"] = feature_vector(fields["features"])
    return CaseScore(**fields)
