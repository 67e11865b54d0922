"""The oracle of a campaign: a person, who answers with files in request folders."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from alseg.core.errors import (
    ConfigError,
    NotAnnotatedYetError,
    check_choice,
    check_flag,
    check_number,
)
from alseg.core.units import Answer, Query, Unit
from alseg.data.findings import listed
from alseg.data.task import Task
from alseg.oracles.answer_intake import AnswerIntake
from alseg.oracles.base import Propose
from alseg.oracles.request_layout import lay_out, place_for, request_for
from alseg.run.folder import (
    ANSWERS_FILE,
    ANSWERS_FOLDER,
    PROPOSALS_FOLDER,
    REQUEST_TABLE,
    request_folder,
    request_of_round,
)
from alseg.run.requests import Request, read_requests
from alseg.system.distributed import rank, wait_for_all

log = logging.getLogger(__name__)

ACCEPT = ("all", "any")


class PersonOracle:
    """Lays out what a query asks for as files, and takes in the labels that come back.

    A case that has a label in the data set is answered with it at once. Of all others, each label
    that is put into ``labels/final`` of a request folder is checked and, if it is sound, copied to
    ``annotations/`` of the run folder; the newest copy is the answer. The file itself is left as it
    is, whether or not it can be used.

    Args:
        task: the data set.
        folder: the run folder.
        annotator: who makes the labels, where ``answers.csv`` beside them does not say it.
        accept: ``all``: a query is answered once each of its units is annotated; ``any``: once one
            of those that had to be annotated is, by a label that came after they were asked for;
            the others go back to the pool.
        accept_unrequested: whether labels of cases that were not asked for are taken in as well.
        wait: stay, and look for labels every ``poll_seconds``, instead of ending the run.
        poll_seconds: between two looks.
        settle_seconds: how long a file must not have changed before it is read.

    Raises:
        ConfigError: if a setting is out of range.
    """

    annotates_unlabelled = True
    measures_minutes = True

    def __init__(
        self,
        task: Task,
        folder: Path,
        *,
        annotator: str = "",
        accept: str = "all",
        accept_unrequested: bool = False,
        wait: bool = False,
        poll_seconds: float = 10.0,
        settle_seconds: float = 2.0,
    ) -> None:
        check_choice("oracle.accept", accept, ACCEPT)
        check_flag("oracle.accept_unrequested", accept_unrequested)
        check_flag("oracle.wait", wait)
        if not isinstance(annotator, str):
            raise ConfigError(f"oracle.annotator is {annotator!r}; it must be text")
        for name, value in (("poll_seconds", poll_seconds), ("settle_seconds", settle_seconds)):
            check_number(f"oracle.{name}", value, at_least=0)
        self.task = task
        self.folder = folder
        self.accept = accept
        self.wait = wait
        self.poll_seconds = poll_seconds
        self.intake = AnswerIntake(task, folder, annotator, accept_unrequested, settle_seconds)

    def request(
        self,
        name: str,
        query: Query,
        scores: Mapping[str, float],
        propose: Propose | None = None,
    ) -> Query:
        """Lay out the units of a query whose case has no label; see ``Oracle.request``."""
        name, request = place_for(self.folder, name, query)
        if request is None:
            known = self._labels({unit.case_id for unit in query})
            request = request_for(name, query, known, scores)
            if request.items:
                lay_out(self.task, self.folder, request, propose)
        return tuple(item.unit for item in request.items)

    def annotate(self, query: Query) -> Answer:
        """What has been annotated by now; with ``wait``, once that is enough."""
        request = next((r for r in read_requests(self.folder) if r.query == query), None)
        n_reported = -1
        while True:
            self._take_in("" if request is None else request.name, returns=self.wait)
            answer, done = self._answer(query), 0
            if request is not None:
                done = len({item.unit for item in request.items} - set(answer.pending))
            is_enough = self.accept == "any" and self._has_come(request)
            if not answer.pending or is_enough:
                if request is not None and rank() == 0:
                    self.intake.report(request)
                return Answer(answer.labels, unrequested=self._further(query))
            instructions = what_to_do(self.folder, request, answer.pending)
            if not self.wait or request is None:
                if request is not None and done and rank() == 0:
                    self.intake.report(request)
                return Answer(answer.labels, answer.pending, what_to_do=instructions)
            if n_reported < 0:
                log.info(instructions)
            if n_reported != done:
                log.info(f"{done} of {len(request.items)} annotated")
            n_reported = done
            time.sleep(self.poll_seconds)

    def labels_for_round(self, round_number: int, case_ids: Iterable[str]) -> dict[str, Path]:
        """The labels that a round works with: the newest versions when it is first asked about."""
        ids, annotations = list(case_ids), self.intake.annotations
        self._take_in(request_of_round(round_number), returns=False)
        if rank() == 0:
            annotations.for_round(round_number, ids)  # noted for the others
        wait_for_all()
        return annotations.for_round(round_number, ids) | self._labels_of_data_set(ids)

    def minutes(self, label: Path) -> float:
        """The minutes that a volume had taken with this label; 0 for one of the data set.

        Raises:
            NotAnnotatedYetError: naming the cases of whose labels nobody has said how long they
                took, if this is one of them.
        """
        annotations = self.intake.annotations
        minutes = annotations.minutes(label)
        if minutes is not None:
            return minutes
        unknown = [i for i, each in annotations.newest().items() if each.minutes is None]
        raise NotAnnotatedYetError(
            unknown,
            f"cost=minutes counts the minutes of each annotation, and nobody has said them for "
            f"{', '.join(unknown[:5])}{', ...' * (len(unknown) > 5)}: add the lines "
            f"case,annotator,minutes to {ANSWERS_FILE} beside the labels.",
        )

    def annotatable(self, case_id: str) -> None:
        """All voxels of each case."""

    def peek(self, case_ids: Iterable[str]) -> dict[str, Path]:
        """Refuse: nobody knows labels that have not been made yet.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a strategy that reads hidden labels works in a simulation only")

    def _take_in(self, asking: str, *, returns: bool) -> None:
        if rank() == 0:
            self.intake.take_in(asking, returns=returns)
        wait_for_all()

    def _answer(self, query: Query) -> Answer:
        labels = self._labels({unit.case_id for unit in query})
        return Answer(
            {unit: labels[unit.case_id] for unit in query if unit.case_id in labels},
            tuple(unit for unit in query if unit.case_id not in labels),
        )

    def _has_come(self, request: Request | None) -> bool:
        """Whether a label of a request has come since it was laid out; not one that lay around."""
        newest = self.intake.annotations.newest()
        return request is not None and any(
            item.unit.case_id in newest and newest[item.unit.case_id].received != item.left_over
            for item in request.items
        )

    def _further(self, query: Query) -> dict[Unit, Path]:
        """What people have annotated besides a query."""
        asked = {unit.case_id for unit in query}
        others = self._annotated(self.task.cases.keys() - asked)
        return {Unit(i): path for i, path in others.items()}

    def _labels(self, case_ids: Collection[str]) -> dict[str, Path]:
        """The label of each of these cases that has one."""
        return self._annotated(case_ids) | self._labels_of_data_set(case_ids)

    def _annotated(self, case_ids: Collection[str]) -> dict[str, Path]:
        """The newest label that somebody has made for each of these cases; all are read."""
        annotations = self.intake.annotations
        newest = annotations.newest()
        return {i: annotations.path(each) for i, each in newest.items() if i in case_ids}

    def _labels_of_data_set(self, case_ids: Iterable[str]) -> dict[str, Path]:
        labels = {case_id: self.task.cases[case_id].label for case_id in case_ids}
        return {case_id: path for case_id, path in labels.items() if path is not None}


def what_to_do(run_folder: Path, request: Request | None, pending: Query) -> str:
    """What whoever annotates is to do, in one paragraph.

    Args:
        run_folder: the run's.
        request: what was asked for; None where labels are missing that had been there.
        pending: what has not been annotated.
    """
    names = listed([unit.case_id for unit in pending])
    if request is None:
        return f"the labels of {names} are missing from the history in {run_folder}."
    proposal = ""
    if any(item.proposal for item in request.items):
        proposal = f", correct the proposal {PROPOSALS_FOLDER}/CASE.nii.gz"
    folder = request_folder(run_folder, request.name)
    return (
        f"{len(pending)} of {len(request.items)} volumes wait for annotation ({names}). In the "
        f"folder {folder}, in the order of {REQUEST_TABLE}: open CASE.nii.gz{proposal}, and save "
        f"the label as {ANSWERS_FOLDER}/CASE.nii.gz; or annotate in the browser, with python -m "
        f"alseg.annotate {shlex.quote(str(run_folder))}."
    )
