"""What the page can do with a run: see what is asked for, claim a case, save and hand in a drawing.

A drawing that is handed in becomes a file in ``labels/final`` of its request, checked as any other
one; the run that waits, or is resumed, takes it in from there.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alseg.annotation_page.claims import Claim, Claims, TakenError
from alseg.annotation_page.grid import (
    Grid,
    drawing_for_page,
    drawing_from_page,
    volume_for_page,
)
from alseg.annotation_page.palette import palette_of
from alseg.annotation_page.place import Place
from alseg.core.errors import DataError
from alseg.core.units import IGNORED
from alseg.data.labels import read_label
from alseg.data.task import Task
from alseg.data.volumes import read_header, write_nifti
from alseg.oracles.annotations import Annotation, Annotations
from alseg.oracles.answer_files import CONFIRMED, details_of_answers, say_of_answer
from alseg.oracles.label_checks import ConfirmationNeededError, check_annotation
from alseg.oracles.reviews import RETURNED, Reviews
from alseg.run.folder import (
    ANSWERS_FILE,
    ANSWERS_FOLDER,
    PAGE_FILE,
    REQUESTS_FOLDER,
    request_folder,
)
from alseg.run.requests import (
    ANNOTATED,
    OPEN,
    REFUSED,
    Request,
    is_looked_at,
    read_requests,
    read_states,
    unchanged_proposal,
)
from alseg.system.files import checksum_of, is_within, name_file_in_errors, replacing

SUBMITTED = "submitted"  # handed in, and not taken in by the run yet


class Desk:
    """The work of annotators on one run; its methods may be called from several threads.

    Args:
        task: the data set of the run.
        run_folder: the run's.
        claim_minutes: how long a case is kept for a page that gives no sign of life.

    Raises:
        DataError: if the data set has more classes than a drawing can tell apart.
    """

    def __init__(self, task: Task, run_folder: Path, claim_minutes: float) -> None:
        self.palette = palette_of(task)
        self.task = task
        self.run_folder = run_folder
        self.claim_seconds = 60 * claim_minutes
        self._volumes = threading.Lock()  # one volume at a time: they are large

    @property
    def page_file(self) -> Path:
        """Where port and token of the page are kept."""
        return self.run_folder / REQUESTS_FOLDER / PAGE_FILE

    def overview(self) -> dict[str, Any]:
        """The newest request, with the state of each case; for JSON."""
        requests = read_requests(self.run_folder)
        content = {
            "task": self.task.name,
            "run": self.run_folder.name,
            "channels": list(self.task.channels),
            "palette": self.palette,
        }
        if not requests:
            return content | {"request": None, "units": []}
        units = self._units(requests[-1])
        for earlier in requests[:-1]:
            units += [unit for unit in self._units(earlier) if unit["reviewer"]]
        return content | {"request": requests[-1].name, "units": units}

    def _units(self, request: Request) -> list[dict[str, Any]]:
        folder = request_folder(self.run_folder, request.name)
        accepted = Annotations(self.run_folder).newest()
        returned = Reviews(self.run_folder).returned(accepted)
        states = read_states(self.run_folder, request.name)
        details = details_of_answers(folder / ANSWERS_FOLDER / ANSWERS_FILE, self.task.cases, [])
        claims = self._claims(folder).read()
        units = []
        for order, item in enumerate(request.items, start=1):
            place = Place(request, folder, item)
            case_id, claim = place.case_id, claims.get(place.case_id)
            state, annotator = OPEN, ""
            if place.answer is not None:
                # one that the run has not looked at may be right
                is_refused = states.get(case_id) == REFUSED and is_looked_at(
                    self.run_folder, request.name, place.answer
                )
                state = REFUSED if is_refused else SUBMITTED
                annotator = details.get(case_id, ("",))[0]
            review = returned.get(case_id)
            if case_id in accepted and (review is None or not self._is_new(place, accepted)):
                state = ANNOTATED if review is None else RETURNED
                annotator = accepted[case_id].annotator or annotator
            units.append(
                {
                    "request": request.name,
                    "case": case_id,
                    "order": order,
                    "score": item.score,
                    "state": state,
                    "annotator": annotator,
                    "reviewer": review.reviewer if review else "",
                    "comment": review.comment if review else "",
                    "has_proposal": bool(item.proposal),
                    "has_uncertainty": place.uncertainty.is_file(),
                    "has_draft": place.draft.is_file(),
                    "drawn_by": claim.annotator if claim else "",
                    "claimed": bool(claim and claim.is_held),
                    "holder": claim.holder if claim and claim.is_held else "",
                }
            )
        return units

    def _is_new(self, place: Place, accepted: Mapping[str, Annotation]) -> bool:
        """Whether another label than the one that was accepted has been handed in."""
        answer = place.answer
        return answer is not None and checksum_of(answer) != accepted[place.case_id].received

    def next_case(self, request: str, annotator: str, holder: str) -> str | None:
        """Claim the next free case for a page; None if there is none.

        First what the annotator has begun, then what nobody has, then what others have left; each
        in the order of the request. Of a request before the newest one only what was returned.
        """
        is_newest = read_requests(self.run_folder)[-1:] == [self._request(request)[0]]
        wanted = (OPEN, REFUSED, RETURNED) if is_newest else (RETURNED,)
        folder = self._request(request)[1]
        with self._claims(folder).locked():
            units = [
                unit
                for unit in self._units(self._request(request)[0])
                if unit["state"] in wanted and unit["holder"] in ("", holder)
            ]
            if not units:
                return None

            def rank(unit: Mapping[str, Any]) -> int:
                own = unit["drawn_by"] == annotator
                return (0 if own else 2) if unit["has_draft"] else 1

            chosen = min(units, key=rank)  # the first of equals
            case_id: str = chosen["case"]
            self._claims(folder).take(case_id, annotator, holder)
            return case_id

    def open(
        self, request: str, case_id: str, annotator: str, holder: str, *, take_over: bool
    ) -> dict[str, Any]:
        """Claim a case for a page; returns what the page needs to know of it.

        Raises:
            TakenError: if another page holds it.
        """
        place = self.place(request, case_id)
        claims = self._claims(place.folder)
        with claims.locked():
            claim = claims.take(case_id, annotator, holder, take_over=take_over)
        for other in read_requests(self.run_folder):
            if other.name != request:
                self._leave(other, holder)
        answer = place.answer
        spacing = read_header(self.task.cases[case_id].images[0]).spacing_mm
        return {
            "case": case_id,
            "seconds": claim.seconds,
            "based_on": "" if answer is None else checksum_of(answer),
            "begins_with": self._beginning(place)[1],
            "spacing_mm": [round(float(edge), 3) for edge in spacing],
        }

    def image(self, request: str, case_id: str, channel: int) -> bytes:
        """The image of a case as NIfTI; see ``volume_for_page``."""
        place = self.place(request, case_id)
        with self._volumes:
            return volume_for_page(self.task.cases[place.case_id].images, channel)

    def uncertainty(self, request: str, case_id: str) -> bytes:
        """The uncertainty map of a case as NIfTI.

        Raises:
            DataError: if there is none, or it lies outside of the request.
        """
        path = self._inside(self.place(request, case_id), "uncertainty")
        with self._volumes:
            return volume_for_page([path])

    def drawing(self, request: str, case_id: str) -> bytes:
        """What the page's drawing begins with: a draft, a label, the proposal, or nothing."""
        place = self.place(request, case_id)
        path, _ = self._beginning(place)
        grid = self._grid(case_id)
        with self._volumes:
            if path is None:
                return drawing_for_page(np.zeros(grid.shape, np.uint8), grid)
            classes = read_label(self.task, path)[0].numpy()[0]
            if self.task.ignore_value is not None:
                classes[classes == IGNORED] = self.task.ignore_value
            if classes.shape != grid.shape:
                raise DataError(f"{path} has shape {classes.shape}, and its image {grid.shape}")
            return drawing_for_page(classes, grid)

    def save_draft(
        self, request: str, case_id: str, holder: str, seconds: float, drawing: bytes
    ) -> None:
        """Keep what has been drawn by now.

        Args:
            request: the request.
            case_id: the case.
            holder: the page.
            seconds: for which the case has been in front since the last time.
            drawing: as ``drawing_from_page`` reads it; empty to keep the claim only.

        Raises:
            TakenError: if the page does not hold the case any more.
            DataError: if the drawing does not fit.
        """
        place = self.place(request, case_id)
        classes = drawing_from_page(drawing, self._grid(case_id)) if drawing else None
        claims = self._claims(place.folder)
        with claims.locked():
            claims.keep(case_id, holder, seconds)
            if classes is not None:
                self._write(place.draft, place, classes)

    def submit(
        self,
        request: str,
        case_id: str,
        holder: str,
        seconds: float,
        drawing: bytes,
        *,
        based_on: str,
        confirmed: bool,
    ) -> None:
        """Hand in a drawing as the label of a case.

        Args:
            request: the request.
            case_id: the case.
            holder: the page.
            seconds: for which the case has been in front since the last time.
            drawing: as ``drawing_from_page`` reads it.
            based_on: the checksum of the label that was there when the page opened the case; empty
                if there was none. Another one is never overwritten.
            confirmed: whether an empty label, or an unchanged proposal, is meant.

        Raises:
            TakenError: if the page does not hold the case, or another label has come meanwhile.
            ConfirmationNeededError: as ``check_annotation``.
            DataError: if the label cannot be used.
        """
        place = self.place(request, case_id)
        classes = drawing_from_page(drawing, self._grid(case_id))
        claims = self._claims(place.folder)
        with claims.locked():
            claim = claims.keep(case_id, holder, seconds)
            self._write(place.draft, place, classes)
            present = place.answer
            if based_on != ("" if present is None else checksum_of(present)):
                raise TakenError(
                    f"{case_id} has been handed in by somebody else meanwhile; that label stays, "
                    "and yours is kept as a draft: open the case again to compare"
                )
            self._check_differs(place)
            try:
                check_annotation(
                    self.task,
                    case_id,
                    place.draft,
                    unchanged_proposal(self.run_folder, place.request, case_id),
                    confirmed=confirmed,
                )
            except ConfirmationNeededError as error:
                message = str(error).replace(str(place.draft), case_id)
                raise ConfirmationNeededError(message) from error
            self._hand_in(place, claim, present, confirmed=confirmed)
            claims.give_back(holder)

    def _leave(self, request: Request, holder: str) -> None:
        """Give back what a page holds of a request, if anybody holds any of it."""
        claims = self._claims(request_folder(self.run_folder, request.name))
        if any(claim.holder == holder for claim in claims.read().values()):
            with claims.locked():
                claims.give_back(holder)

    def give_back(self, request: str, holder: str) -> None:
        """Give back what a page holds."""
        claims = self._claims(self._request(request)[1])
        with claims.locked():
            claims.give_back(holder)

    def place(self, request: str, case_id: str) -> Place:
        """A case of a request.

        Raises:
            DataError: if it is not asked for; no name leads to another folder.
        """
        found, folder = self._request(request)
        for item in found.items:
            if item.unit.case_id == case_id and case_id in self.task.cases:
                return Place(found, folder, item)
        raise DataError(f"{request} does not ask for a case {case_id}")

    def most_bytes(self, request: str, case_id: str) -> int:
        """An upper bound of a compressed drawing: deflate adds less than a thousandth."""
        self.place(request, case_id)
        return int(1.001 * self._grid(case_id).n_voxels) + 1024

    def _request(self, name: str) -> tuple[Request, Path]:
        for request in read_requests(self.run_folder):
            if request.name == name:
                return request, request_folder(self.run_folder, name)
        raise DataError(f"{self.run_folder} has no request {name}")

    def _claims(self, folder: Path) -> Claims:
        return Claims(folder, self.claim_seconds)

    def _grid(self, case_id: str) -> Grid:
        return Grid.of(read_header(self.task.cases[case_id].images[0]))

    def _beginning(self, place: Place) -> tuple[Path | None, str]:
        """The file that a drawing begins with, and what it is."""
        if place.draft.is_file():
            return self._inside(place, "draft"), "draft"
        if place.answer is not None:
            return self._inside(place, "answer"), "label"
        path = unchanged_proposal(self.run_folder, place.request, place.case_id)
        return (path, "proposal") if path is not None else (None, "nothing")

    def _inside(self, place: Place, kind: str) -> Path:
        """One of the files of a case, if it is there and lies in the request's folder."""
        path: Path | None = getattr(place, kind)
        if path is None or not path.is_file() or not is_within(path, place.folder):
            raise DataError(f"{place.request.name} has no {kind} of {place.case_id}")
        return path

    def _write(self, path: Path, place: Place, classes: np.ndarray) -> None:
        image = self.task.cases[place.case_id].images[0]
        write_nifti(path, torch.from_numpy(classes), like=image)

    def _check_differs(self, place: Place) -> None:
        """Check that a label that was returned is handed in with changes.

        Raises:
            DataError: if it is the same.
        """
        accepted, case_id = Annotations(self.run_folder).newest(), place.case_id
        review = Reviews(self.run_folder).returned(accepted).get(case_id)
        if review is not None and checksum_of(place.draft) == accepted[case_id].received:
            raise DataError(
                f"{case_id} is as it was when {review.reviewer} returned it: change it, or ask "
                "for another review"
            )

    def _hand_in(
        self, place: Place, claim: Claim, present: Path | None, *, confirmed: bool
    ) -> None:
        """Move a draft that has been checked to the labels; the table first, the label last."""
        folder = place.folder / ANSWERS_FOLDER
        minutes = claim.seconds / 60
        say_of_answer(folder / ANSWERS_FILE, place.case_id, claim.annotator, minutes)
        confirmation = folder / f"{place.case_id}{CONFIRMED}"
        if confirmed:
            with replacing(confirmation):
                pass  # an empty file
        else:
            confirmation.unlink(missing_ok=True)
        if present is not None and present.suffix != ".gz":
            present.unlink()  # two files of a case would both be left aside
        label = folder / place.draft.name
        with name_file_in_errors(label):
            place.draft.replace(label)
