"""Takes in answers: labels in the request folders are accepted, or what is wrong is reported."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from alseg.core.counts import counted
from alseg.core.errors import DataError
from alseg.data.findings import listed
from alseg.data.task import Task
from alseg.oracles.annotations import Annotation, Annotations
from alseg.oracles.answer_files import CONFIRMED, AnswerFile, AnswerFiles, in_one_line
from alseg.oracles.label_acceptance import accept
from alseg.oracles.label_checks import ConfirmationNeededError
from alseg.run.folder import ANSWERS_FOLDER, REQUESTS_FOLDER
from alseg.run.requests import (
    ANNOTATED,
    OPEN,
    REFUSED,
    RETURNED,
    Request,
    proposal_file,
    read_requests,
    unchanged_proposal,
    write_states,
)
from alseg.system.files import checksum_of

log = logging.getLogger(__name__)

UNREQUESTED = "not asked for"


class AnswerIntake:
    """Takes in labels from the request folders of a run; reports each thing once.

    Args:
        task: the data set.
        run_folder: the run's.
        annotator: who makes the labels, where nothing beside them says it.
        accept_unrequested: whether labels of cases that nobody asked for are taken in.
        settle_seconds: how long a file must not have changed before it is read.
    """

    def __init__(
        self,
        task: Task,
        run_folder: Path,
        annotator: str,
        accept_unrequested: bool,
        settle_seconds: float,
    ) -> None:
        self.task = task
        self.run_folder = run_folder
        self.annotator = in_one_line(annotator)
        self.accept_unrequested = accept_unrequested
        self.annotations = Annotations(run_folder)
        self.answer_files = AnswerFiles(run_folder, task.cases, settle_seconds)
        self._checksums: dict[Path, tuple[tuple[int, int], str]] = {}  # of files, by their state
        self._refused: dict[tuple[object, ...], str] = {}  # what was found wrong with a file
        self._logged: set[str] = set()
        self._news: set[str] = set()  # the requests of which something has been accepted

    def take_in(self, asking: str, *, returns: bool) -> None:
        """Accept what has come and is sound; report what is not.

        Args:
            asking: the request that is being answered, or comes next: those before it are closed.
            returns: whether this is called again before long: then a file that may still be
                changing is left for that time, and not waited for.
        """
        requests = {each.name: each for each in read_requests(self.run_folder)}
        found = self.answer_files.look() if returns else self.answer_files.wait_and_look()
        for remark in found.remarks:
            self._log_once(remark)
        if not returns:
            for path in found.arriving:
                self._log_once(f"{path} is still being written: resume the run once it is complete")
        asked_by = {case_id: each for each in requests.values() for case_id in each.case_ids}
        refused: list[str] = []
        unrequested: list[str] = []
        for answer in found.complete:
            reason = self._consider(answer, asked_by.get(answer.case_id))
            if reason == UNREQUESTED:
                unrequested.append(answer.case_id)
            elif reason:
                refused.append(answer.case_id)
                self._log_once(reason)
        if unrequested:
            self._log_once(
                f"not asked for, and not used: {counted(len(unrequested), 'label')}, "
                f"{listed(unrequested)}; oracle.accept_unrequested=true takes them in"
            )
        annotated = dict.fromkeys(self.annotations.newest(), ANNOTATED)
        for request in requests.values():
            states = dict.fromkeys(request.case_ids, RETURNED if request.name < asking else OPEN)
            states |= dict.fromkeys(refused, REFUSED)
            write_states(self.run_folder, request, states | annotated)
            self._report_what_was_saved_over(request, annotated)

    def report(self, request: Request) -> None:
        """Sum up what has come of a request, if anything has come of it since it was last said."""
        for row in self.annotations.summary().to_dict("records"):
            if row["request"] == request.name and request.name in self._news:
                parts = [f"{request.name}: {row['annotated']} of {len(request.items)} annotated"]
                if not math.isnan(row["proposal_dice"]):
                    parts.append(
                        f"Dice of the proposals with the labels {row['proposal_dice']:.3f}"
                    )
                if not math.isnan(row["minutes"]):
                    parts.append(f"{row['minutes']:.3g} minutes a volume")
                self._log_once(" · ".join(parts), logging.INFO)
        self._news.discard(request.name)

    def _consider(self, answer: AnswerFile, request: Request | None) -> str:
        """Accept a label that has been handed in; returns why it is not used, if it is not.

        It belongs to the newest request that asks for its case, in whichever folder it lies.
        """
        case_id, path = answer.case_id, answer.path
        if case_id not in self.task.cases:
            return f"{path} is of no case: the data set has none that is called {case_id}"
        if self.task.cases[case_id].label is not None:
            return f"{path} is not used: the data set has a label for {case_id}"
        versions = [each for each in self.annotations.history if each.case == case_id]
        received = self._checksum(answer)
        from_here = [each for each in versions if each.folder == answer.folder]
        # the same file in another request folder is not a new version
        for each in from_here[-1:] or versions:
            if each.received == received:
                self.annotations.amend(each, answer.annotator, answer.minutes)
                return ""
        if not versions and request is None and not self.accept_unrequested:
            return UNREQUESTED
        key = (path, *answer.state, answer.confirmed)
        if key not in self._refused:
            self._refused[key] = self._accept(answer, request)
        return self._refused[key]

    def _checksum(self, answer: AnswerFile) -> str:
        """The checksum of an answer, which is read again only if the file has changed."""
        state, checksum = self._checksums.get(answer.path, (None, ""))
        if state != answer.state:
            checksum = checksum_of(answer.path)
            self._checksums[answer.path] = answer.state, checksum
        return checksum

    def _accept(self, answer: AnswerFile, request: Request | None) -> str:
        """Accept a label; returns why it cannot be, if it cannot."""
        proposal = None
        if request is not None:
            proposal = unchanged_proposal(self.run_folder, request, answer.case_id)
        try:
            added, note = accept(
                self.task,
                self.annotations,
                answer.case_id,
                answer.path,
                proposal=proposal,
                confirmed=answer.confirmed,
                annotator=answer.annotator or self.annotator,
                minutes=answer.minutes,
                request=request.name if request is not None else "",
                folder=answer.folder,
            )
        except ConfirmationNeededError as error:
            return f"not accepted: {error} with an empty file {answer.case_id}{CONFIRMED} there"
        except DataError as error:
            return f"not accepted, and left where it is: {error}"
        self._news.add(added.request)
        if note:
            self._log_once(note)
        log.info(f"accepted: {answer.case_id}{_details(added)}")
        return ""

    def _report_what_was_saved_over(self, request: Request, annotated: Mapping[str, str]) -> None:
        """Report labels that were saved over the proposal, which is easily done."""
        for item in request.items:
            path = proposal_file(self.run_folder, request.name, item.unit.case_id)
            is_open = bool(item.proposal) and item.unit.case_id not in annotated
            if is_open and checksum_of(path) != item.proposal:
                self._log_once(
                    f"{path} has changed, and is not read: answers go to {ANSWERS_FOLDER}"
                )

    def _log_once(self, message: str, level: int = logging.WARNING) -> None:
        if message not in self._logged:
            self._logged.add(message)
            log.log(level, message)


def _details(annotation: Annotation) -> str:
    parts = []
    if annotation.version > 1:
        parts.append(f"version {annotation.version}, used from the next round on")
    if annotation.folder != annotation.request:
        parts.append(f"found in {REQUESTS_FOLDER}/{annotation.folder}")
    if annotation.annotator:
        parts.append(f"by {annotation.annotator}")
    if annotation.minutes is not None:
        parts.append(f"{annotation.minutes:g} minutes")
    if annotation.proposal_dice is not None:
        parts.append(f"Dice of the proposal {annotation.proposal_dice:.3f}")
    return f" ({', '.join(parts)})" if parts else ""
