"""The oracle of a campaign: a person, who answers with files in request folders."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from alseg.core.errors import (
    ConfigError,
    DataError,
    check_choice,
    check_flag,
)
from alseg.core.units import Answer, Query, Unit
from alseg.data.nifti import ENDINGS
from alseg.data.task import Task
from alseg.oracles.acceptance import accept
from alseg.oracles.annotations import Annotation, Annotations
from alseg.oracles.checking import ConfirmationNeededError
from alseg.oracles.inbox import CONFIRMED, Delivery, Inbox
from alseg.run.folder import (
    ANSWERS_FOLDER,
    PROPOSALS_FOLDER,
    REQUEST_TABLE,
    UNCERTAINTY_FOLDER,
    request_folder,
)
from alseg.run.requests import (
    ANNOTATED,
    REFUSED,
    Item,
    Request,
    proposal_file,
    read_request,
    read_requests,
    write_request,
    write_states,
)
from alseg.system.distributed import from_first, rank, wait_for_all
from alseg.system.files import checksum_of, clean_temporaries, told_by_name

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
            of those that had to be annotated is; the others go back to the pool.
        accept_unrequested: whether labels of cases that were not asked for are taken in as well.
        wait: stay, and look for labels every ``poll_seconds``, instead of ending the run.
        poll_seconds: between two looks.
        settle_seconds: how long a file must not have changed before it is read.

    Raises:
        ConfigError: if a setting is out of range.
    """

    annotates_unlabelled = True

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
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise ConfigError(f"oracle.{name} is {value!r}; it must be a number of at least 0")
        self.task = task
        self.folder = folder
        self.annotator = annotator
        self.accept = accept
        self.accept_unrequested = accept_unrequested
        self.wait = wait
        self.poll_seconds = poll_seconds
        self.annotations = Annotations(folder)
        self.inbox = Inbox(folder, settle_seconds)
        self._refused: dict[tuple[object, ...], str] = {}  # what was found wrong with a file
        self._told: set[str] = set()

    def request(
        self,
        name: str,
        query: Query,
        scores: Mapping[str, float],
        propose: Callable[[Query, Path], None] | None = None,
    ) -> Query:
        """Lay out the units of a query that have no label; once, however often it is called.

        Args:
            name: of the request.
            query: the units, in the order of acquisition.
            scores: by case, where there is one.
            propose: writes a proposed segmentation and an uncertainty map of some units into
                ``labels/original`` and ``uncertainty`` of a folder; None where no network can.

        Returns:
            The units that were laid out.
        """
        known = self._known()
        missing = tuple(unit for unit in query if unit.case_id not in known)
        name, earlier = self._place(name, query)
        if earlier is not None:
            return tuple(item.unit for item in earlier.items)
        if not missing:
            return ()
        folder = request_folder(self.folder, name)
        for part in (PROPOSALS_FOLDER, ANSWERS_FOLDER, UNCERTAINTY_FOLDER):
            (folder / part).mkdir(parents=True, exist_ok=True)
            clean_temporaries(folder / part)
        clean_temporaries(folder)
        images = {unit.case_id: self._lay_out_images(folder, unit.case_id) for unit in missing}
        if propose is not None:
            propose(missing, folder)
        wait_for_all()
        if rank() == 0:
            items = tuple(
                Item(
                    unit,
                    scores.get(unit.case_id),
                    images[unit.case_id],
                    checksum_of(proposal_file(self.folder, name, unit.case_id)),
                )
                for unit in missing
            )
            write_request(self.folder, Request(name, query, items))
        wait_for_all()
        return missing

    def annotate(self, query: Query) -> Answer:
        """What has been annotated by now; with ``wait``, once that is enough."""
        request = next((r for r in read_requests(self.folder) if r.query == query), None)
        n_done = -1
        while True:
            if rank() == 0:
                self._take_in(request)
            wait_for_all()
            known = self._known()
            pending = tuple(unit for unit in query if unit.case_id not in known)
            labels = {unit: known[unit.case_id] for unit in query if unit.case_id in known}
            items = () if request is None else request.items
            done = sum(item.unit.case_id in known for item in items)
            if not pending or (done and self.accept == "any"):
                if request is not None and rank() == 0:
                    self._report(request)
                asked = {unit.case_id for unit in query}
                others = {Unit(i): path for i, path in known.items() if i not in asked}
                return Answer(labels, unrequested=self._annotated_only(others))
            how = self._what_to_do(request, pending)
            if not from_first(self.wait):
                return Answer(labels, pending, what_to_do=how)
            if n_done < 0:
                log.info(how)
            if done != n_done:
                log.info(f"{done} of {len(items)} annotated")
            n_done = done
            time.sleep(self.poll_seconds)

    def labels_for_round(self, round_number: int, case_ids: Iterable[str]) -> dict[str, Path]:
        """The labels that a round works with: the newest versions when it is first asked about."""
        ids = list(case_ids)
        if rank() == 0:
            self._take_in(None)
            self.annotations.for_round(round_number, ids)
        wait_for_all()
        of_data_set = {i: path for i in ids if (path := self.task.cases[i].label) is not None}
        return of_data_set | self.annotations.for_round(round_number, ids)

    def peek(self, case_ids: Iterable[str]) -> dict[str, Path]:
        """Refuse: nobody knows labels that have not been made yet.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a strategy that reads hidden labels works in a simulation only")

    def _known(self) -> dict[str, Path]:
        """The label of each case that has one: the data set's, else the newest version."""
        newest = {i: self.annotations.path(each) for i, each in self.annotations.newest().items()}
        return newest | {i: c.label for i, c in self.task.cases.items() if c.label is not None}

    def _annotated_only(self, labels: Mapping[Unit, Path]) -> dict[Unit, Path]:
        """Those that are no labels of the data set."""
        return {u: path for u, path in labels.items() if self.task.cases[u.case_id].label is None}

    def _place(self, name: str, query: Query) -> tuple[str, Request | None]:
        """The name for a request, and the request if it has been laid out.

        A round that starts again with other settings may have another query: it gets a folder of
        its own beside that of the first one.
        """
        free, number = name, 1
        while (earlier := read_request(self.folder, free)) is not None:
            if earlier.query == query:
                return free, earlier
            number += 1
            free = f"{name}_{number}"
        return free, None

    def _lay_out_images(self, folder: Path, case_id: str) -> tuple[str, ...]:
        """Link the images of a case into a request folder, or copy them; returns their names."""
        images = self.task.cases[case_id].images
        names = []
        for channel, image in enumerate(images):
            ending = next((e for e in ENDINGS[::-1] if image.name.endswith(e)), image.suffix)
            channel_of = f"_{channel:04d}" if len(images) > 1 else ""
            path = folder / f"{case_id}{channel_of}{ending}"
            if rank() == 0 and not path.exists():
                path.unlink(missing_ok=True)  # a link to nothing
                try:
                    path.symlink_to(image.resolve())
                except OSError:  # a file system without links
                    with told_by_name(path):
                        shutil.copyfile(image, path)
            names.append(path.name)
        return tuple(names)

    def _take_in(self, request: Request | None) -> None:
        """Accept what has come and is sound, and tell of what is not; each once.

        Args:
            request: the one that is being answered, if one is.
        """
        requests = {each.name: each for each in read_requests(self.folder)}
        asked = {case_id for each in requests.values() for case_id in each.case_ids}
        look = self.inbox.look() if self.wait else self.inbox.wait_and_look()
        for remark in look.remarks:
            self._tell(remark)
        for path in look.arriving if not self.wait else ():
            self._tell(f"{path} is still being written: it is looked at when the run is resumed")
        newest = self.annotations.newest()
        refused: dict[str, list[str]] = {}
        for delivery in look.deliveries:
            message = self._consider(delivery, newest, asked)
            if message:
                refused.setdefault(delivery.request, []).append(delivery.case_id)
                self._tell(message)
        known = self._known()
        for each in requests.values():
            states = dict.fromkeys(refused.get(each.name, ()), REFUSED)
            write_states(self.folder, each, states | dict.fromkeys(known, ANNOTATED))
            self._tell_of_changed_proposals(each, known)

    def _consider(
        self, delivery: Delivery, newest: dict[str, Annotation], asked: set[str]
    ) -> str:
        """Accept a label that has been handed in; returns why it is not, if it is not."""
        case_id, path = delivery.case_id, delivery.path
        if case_id not in self.task.cases:
            return f"{path} is of no case: the data set has none that is called {case_id}"
        if self.task.cases[case_id].label is not None:
            return f"{path} is not used: the data set has a label for {case_id}"
        received = checksum_of(path)
        versions = [each for each in self.annotations.history if each.case == case_id]
        for each in versions:
            if each.received == received and each.request == delivery.request:
                self.annotations.amend(each, delivery.annotator, delivery.minutes)
                return ""
        if not versions and case_id not in asked and not self.accept_unrequested:
            return (
                f"{path} was not asked for, and is not used; oracle.accept_unrequested=true takes "
                "it in"
            )
        key = (path, *delivery.state, delivery.confirmed)
        if key not in self._refused:
            self._refused[key] = self._accept(delivery, newest)
        return self._refused[key]

    def _accept(self, delivery: Delivery, newest: dict[str, Annotation]) -> str:
        """Accept a label; returns why it cannot be, if it cannot."""
        case_id, proposal = delivery.case_id, self._proposal(delivery)
        try:
            added, note = accept(
                self.task,
                self.annotations,
                case_id,
                delivery.path,
                proposal=proposal,
                confirmed=delivery.confirmed,
                annotator=delivery.annotator or self.annotator,
                minutes=delivery.minutes,
                request=delivery.request,
            )
        except ConfirmationNeededError as error:
            return f"{error} with an empty file {delivery.path.parent / case_id}{CONFIRMED}"
        except DataError as error:
            return f"not accepted, and left where it is: {error}"
        if note:
            self._tell(note)
        changed = f", version {added.version} (training uses it from the next round on)"
        log.info(f"accepted: {case_id}{_told_of(added)}{changed if case_id in newest else ''}")
        newest[case_id] = added
        return ""

    def _proposal(self, delivery: Delivery) -> Path | None:
        """The proposal that a label answers, if there is one that nobody has changed."""
        request = read_request(self.folder, delivery.request)
        checksums = {i.unit.case_id: i.proposal for i in request.items} if request else {}
        path = proposal_file(self.folder, delivery.request, delivery.case_id)
        checksum = checksums.get(delivery.case_id)
        return path if checksum and checksum_of(path) == checksum else None

    def _tell_of_changed_proposals(self, request: Request, known: Mapping[str, Path]) -> None:
        """Tell of labels that were saved over the proposal, which is easily done."""
        for item in request.items:
            path = proposal_file(self.folder, request.name, item.unit.case_id)
            if item.proposal and item.unit.case_id not in known:
                if checksum_of(path) != item.proposal:
                    self._tell(f"{path} has been changed: labels are read from {ANSWERS_FOLDER}")

    def _report(self, request: Request) -> None:
        """Sum up what has come of a request."""
        made = [each for each in self.annotations.newest().values() if each.request == request.name]
        if not made:
            return
        parts = [f"{request.name}: {len(made)} of {len(request.items)} annotated"]
        dice = [each.proposal_dice for each in made if each.proposal_dice is not None]
        if dice:
            parts.append(f"mean Dice of the proposals with them {sum(dice) / len(dice):.3f}")
        minutes = [each.minutes for each in made if each.minutes is not None]
        if minutes:
            parts.append(f"{sum(minutes):g} minutes for {len(minutes)} of them")
        self._tell(" · ".join(parts))

    def _what_to_do(self, request: Request | None, pending: Query) -> str:
        """What whoever annotates is to do, one paragraph."""
        names = ", ".join(unit.case_id for unit in pending[:5]) + ", ..." * (len(pending) > 5)
        if request is None:
            return f"no label is there any more for {names}; see annotations/ in {self.folder}"
        folder = request_folder(self.folder, request.name)
        open_ = len([item for item in request.items if item.unit in pending])
        proposals = any(item.proposal for item in request.items)
        return (
            f"{open_} of {len(request.items)} volumes wait for annotation: {names}. They are in "
            f"{folder}, in the order of {REQUEST_TABLE}: open CASE.nii.gz"
            + (f", correct the proposal {PROPOSALS_FOLDER}/CASE.nii.gz" if proposals else "")
            + f", and save the label as {ANSWERS_FOLDER}/CASE.nii.gz."
        )

    def _tell(self, message: str) -> None:
        """Say something once."""
        if message not in self._told:
            self._told.add(message)
            log.warning(message)


def _told_of(annotation: Annotation) -> str:
    parts = []
    if annotation.annotator:
        parts.append(f"by {annotation.annotator}")
    if annotation.minutes is not None:
        parts.append(f"{annotation.minutes:g} minutes")
    if annotation.proposal_dice is not None:
        parts.append(f"Dice of the proposal {annotation.proposal_dice:.3f}")
    return f" ({', '.join(parts)})" if parts else ""
