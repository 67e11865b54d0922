"""What is to be sent to a store that may be away: sent in order, or kept on disk until it is."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alseg.core.errors import DataError
from alseg.system.files import is_within, name_file_in_errors, write_atomically

log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0

Operation = dict[str, Any]  # "do", "run" and what it needs; JSON


class RefusedError(Exception):
    """The store is there and refuses an operation: it would refuse it again."""


class Outbox:
    """Sends operations in the order of their calls; never raises because a send failed.

    Once an operation fails, it and all later ones wait in the journal, one JSON line each. The next
    call that comes ``retry_seconds`` after a failure tries again from the first one on. An
    operation may be performed twice, if the process or the store dies between doing and noting it;
    all but ``create`` can be repeated without harm. One that the store refuses is dropped with a
    warning: it would hold up all behind it for ever.

    Runs that are created here have local keys, which stand for the store's ids in all operations,
    so that a run can be used before the store knows it. Any other ``run`` is a store's id.

    Args:
        perform: does one operation, with the store's run id in ``run``; returns the new run's id if
            it creates one. Raises ``RefusedError``, or for an outage whatever it likes.
        journal: the file for what waits; read if it is there.
        retry_seconds: between two attempts, so that a dead store does not slow down the run.

    Raises:
        DataError: if the journal is damaged, or names a file outside its folder.
    """

    def __init__(
        self,
        perform: Callable[[Operation], str | None],
        journal: Path,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self.perform = perform
        self.journal = journal
        self.retry_seconds = retry_seconds
        self.error: Exception | None = None  # of the last attempt
        self._ids: dict[str, str] = {}  # local key -> the store's run id
        self._waiting = _read(journal, self._ids)
        self._tried_at = -retry_seconds

    @property
    def n_waiting(self) -> int:
        """The number of operations that have not been sent."""
        return len(self._waiting)

    def create_run(self, **details: Any) -> str:
        """Send the creation of a run; returns its local key."""
        key = f"local-{uuid.uuid4().hex}"
        self.send(do="create", run=key, **details)
        return key

    def send(self, **operation: Any) -> None:
        """Send an operation behind those that wait, or keep it."""
        if self._waiting:
            self._keep(operation)
            if time.monotonic() - self._tried_at > self.retry_seconds:
                self.flush()
            return
        try:
            self._do(operation)
        except Exception as error:  # each kind of store raises errors of its own
            self.error, self._tried_at = error, time.monotonic()
            for key, run_id in self._ids.items():  # the journal must stand on its own
                self._append({"do": "created", "run": key, "id": run_id})
            self._keep(operation)
            log.warning(
                f"the tracking store does not answer; what it misses waits in {self.journal}: "
                f"{error}"
            )

    def flush(self) -> bool:
        """Try to send all that waits; returns whether nothing is left."""
        if not self._waiting:
            return True
        before = self.n_waiting
        self.error = None
        while self._waiting and self.error is None:
            try:
                self._do(self._waiting[0])
                self._waiting.pop(0)
            except Exception as error:  # as above
                self.error = error
        self._tried_at = time.monotonic()
        if self._waiting:
            created = [{"do": "created", "run": k, "id": v} for k, v in self._ids.items()]
            lines = [json.dumps(operation) + "\n" for operation in (*created, *self._waiting)]
            write_atomically(self.journal, "".join(lines))
        else:
            self.journal.unlink(missing_ok=True)
        if sent := before - self.n_waiting:
            log.info(f"sent {sent} operations to the tracking store, {self.n_waiting} wait")
        return not self._waiting

    def _do(self, operation: Operation) -> None:
        if operation["do"] != "create":
            run_id = self._ids.get(operation["run"], operation["run"])
            try:
                self.perform(operation | {"run": run_id})
            except RefusedError as refusal:
                log.warning(
                    f"the tracking store refuses {json.dumps(operation)[:300]}, which is left out: "
                    f"{refusal}"
                )
            return
        created = self.perform(operation)
        assert created is not None
        self._ids[operation["run"]] = created
        if self._waiting:  # a killed process must not create it again
            self._append({"do": "created", "run": operation["run"], "id": created})

    def _keep(self, operation: Operation) -> None:
        self._waiting.append(operation)
        self._append(operation)

    def _append(self, line: Operation) -> None:
        with name_file_in_errors(self.journal), self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _read(journal: Path, ids: dict[str, str]) -> list[Operation]:
    """The operations that wait in a journal; fills in the ids of runs that the store knows."""
    if not journal.is_file():
        return []
    try:
        lines = journal.read_text(encoding="utf-8").splitlines()
    except ValueError as error:
        raise DataError(f"{journal} is damaged: {error}") from error
    operations: list[Operation] = []
    for number, line in enumerate(lines, start=1):
        try:
            operation = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                continue  # cut off when its process was killed
            raise DataError(f"{journal}, line {number}, is not JSON: {error}") from error
        if not _is_operation(operation):
            raise DataError(f"{journal}, line {number}, is no operation of a tracking store")
        if operation["do"] == "upload" and not is_within(
            journal.parent / operation["path"], journal.parent
        ):
            raise DataError(
                f"{journal}, line {number}, would send {operation['path']!r}, which is not in the "
                "run folder; alseg writes no such line: delete it"
            )
        if operation["do"] == "created":
            ids[operation["run"]] = operation["id"]
        else:
            operations.append(operation)
    return [o for o in operations if o["do"] != "create" or o["run"] not in ids]


def _is_operation(content: Any) -> bool:
    """Whether a line of a journal says what is to be done to which run."""
    if not isinstance(content, dict):
        return False
    more = {"created": ("id",), "upload": ("path",)}.get(str(content.get("do")), ())
    return all(isinstance(content.get(name), str) for name in ("do", "run", *more))
