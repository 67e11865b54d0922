"""What the page of a review can do: show what a run has asked for, and keep what is said of it.

Nothing of the run is changed, except that ``annotations/reviews.csv`` gets rows.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alseg.annotation_page.claims import TakenError
from alseg.annotation_page.grid import Grid, drawing_for_page, volume_for_page
from alseg.annotation_page.palette import palette_of
from alseg.annotation_page.units_in_review import UnitInReview, units_in_review
from alseg.core.errors import DataError
from alseg.core.units import IGNORED
from alseg.data.labels import read_label
from alseg.data.task import Task
from alseg.data.volumes import read_header
from alseg.oracles.annotations import Annotations
from alseg.oracles.reviews import Review, Reviews
from alseg.run.folder import ANNOTATIONS_FOLDER, REVIEW_PAGE_FILE, STAGES_FILE, round_folder

if TYPE_CHECKING:
    from alseg.engine.trained_run import TrainedRun

TO_REVIEW, NO_LABEL = "to review", "no label"  # states besides the verdicts
N_PREDICTIONS = 8  # that are kept in memory: a byte a voxel, compressed


class ReviewDesk:
    """The review of one run; its methods may be called from several threads.

    Args:
        task: the data set of the run.
        run_folder: the run's.
        trusted_packages: of the user's own, which the settings of the network may name.
    """

    def __init__(
        self, task: Task, run_folder: Path, trusted_packages: Collection[str] = ()
    ) -> None:
        self.palette = palette_of(task)
        self.task = task
        self.run_folder = run_folder
        self.trusted_packages = trusted_packages
        self.reviews = Reviews(run_folder)
        self._volumes = threading.Lock()  # one volume at a time: they are large
        self._predicted = lru_cache(N_PREDICTIONS)(self._predict)
        self._network = lru_cache(1)(self._load)

    @property
    def page_file(self) -> Path:
        """Where port and token of the page are kept."""
        return self.run_folder / ANNOTATIONS_FOLDER / REVIEW_PAGE_FILE

    def overview(self) -> dict[str, Any]:
        """What there is to review, round by round; for JSON."""
        counts, last = Counter[str](), {_subject(said): said for said in self.reviews.history}
        units = []
        for each in units_in_review(self.run_folder, self.task):
            counts[each.round_name] += 1
            said = last.get((each.unit.case_id, each.unit.where or ""))
            units.append(self._row(counts[each.round_name], each, said))
        return {
            "review": True,
            "task": self.task.name,
            "run": self.run_folder.name,
            "channels": list(self.task.channels),
            "palette": self.palette,
            "units": units,
        }

    def _row(self, order: int, each: UnitInReview, said: Review | None) -> dict[str, Any]:
        state, reviewer = TO_REVIEW, ""
        if each.label is None:
            state = NO_LABEL
        elif said is not None and said.checksum == each.checksum:
            state, reviewer = said.verdict, said.reviewer
        return {
            "request": each.round_name,
            "case": each.unit.name,
            "order": order,
            "score": each.score,
            "state": state,
            "reviewer": reviewer,
            "has_label": each.label is not None,
            "has_proposal": self._has_proposal(each),
            "has_uncertainty": each.kept(self.run_folder, uncertainty=True) is not None,
        }

    def about(self, round_name: str, name: str) -> dict[str, Any]:
        """What the page needs to know of a unit that it opens, with all that was said of it."""
        each = self._find(round_name, name)
        grid, version, region = self._grid(each), each.version, each.unit.region
        middle = region and grid.voxel_on_page([(start + stop) // 2 for start, stop in region])
        return {
            "case": name,
            "checksum": each.checksum,
            "middle": middle,
            "annotator": version.annotator if version else "",
            "minutes": version.minutes if version else None,
            "version": version.version if version else None,
            "reviews": [
                {
                    "time": said.time,
                    "reviewer": said.reviewer,
                    "verdict": said.verdict,
                    "version": said.version,
                    "comment": said.comment,
                }
                for said in self.reviews.history
                if _subject(said) == (each.unit.case_id, each.unit.where or "")
            ],
        }

    def image(self, round_name: str, name: str, channel: int) -> bytes:
        """The image as NIfTI; see ``volume_for_page``."""
        each = self._find(round_name, name)
        with self._volumes:
            return volume_for_page(self.task.cases[each.unit.case_id].images, channel)

    def uncertainty(self, round_name: str, name: str) -> bytes:
        """The map of uncertainty that the run has kept, as NIfTI.

        Raises:
            DataError: if it has kept none.
        """
        path = self._find(round_name, name).kept(self.run_folder, uncertainty=True)
        if path is None:
            raise DataError(f"the run has kept no uncertainty of {name}")
        with self._volumes:
            return volume_for_page([path])

    def label(self, round_name: str, name: str) -> bytes:
        """What has been revealed of the label, as ``drawing_for_page`` gives it.

        Raises:
            DataError: if nothing has, or the file is not what was accepted.
        """
        each = self._find(round_name, name)
        if each.label is None:
            raise DataError(f"{name} has no label yet")
        if each.version is not None:
            Annotations(self.run_folder).path(each.version)  # it is what was accepted
        with self._volumes:
            classes = read_label(self.task, each.label.path, each.label.regions)[0].numpy()[0]
            return self._drawing(each, classes)

    def proposal(self, round_name: str, name: str) -> bytes:
        """What the round's network makes of the case, as ``drawing_for_page`` gives it.

        It is read where the run has kept it, else made.

        Raises:
            DataError: if there was no network yet, or it is not kept.
        """
        each = self._find(round_name, name)
        path = each.kept(self.run_folder, uncertainty=False)
        with self._volumes:
            if path is not None:
                return self._drawing(each, read_label(self.task, path)[0].numpy()[0])
            if not self._has_proposal(each):
                raise DataError(f"the run has no network of {round_name}, and kept no proposal")
            return self._predicted(each.round_number, each.unit.case_id)

    def review(
        self,
        round_name: str,
        name: str,
        *,
        reviewer: str,
        verdict: str,
        comment: str,
        checksum: str,
    ) -> None:
        """Keep what a reviewer says of a label.

        Args:
            round_name: the round.
            name: of the unit.
            reviewer: who says it.
            verdict: one of ``VERDICTS``.
            comment: may be empty.
            checksum: of the label that the reviewer has seen.

        Raises:
            DataError: if there is no label.
            TakenError: if the label has changed since.
        """
        each = self._find(round_name, name)
        if each.label is None:
            raise DataError(f"{name} has no label yet")
        if checksum != each.checksum:
            raise TakenError(f"{name} has a newer label: open it again")
        self.reviews.add(
            reviewer=reviewer,
            round_name=round_name,
            case_id=each.unit.case_id,
            region=each.unit.where or "",
            version=str(each.version.version) if each.version else "",
            checksum=checksum,
            verdict=verdict,
            comment=comment,
        )

    def _find(self, round_name: str, name: str) -> UnitInReview:
        for each in units_in_review(self.run_folder, self.task):
            if each.round_name == round_name and each.unit.name == name:
                return each
        raise DataError(f"{round_name} has not asked for {name}")

    def _has_proposal(self, each: UnitInReview) -> bool:
        if each.kept(self.run_folder, uncertainty=False) is not None:
            return True
        number = each.round_number
        return number > 0 and (round_folder(self.run_folder, number) / STAGES_FILE).is_file()

    def _grid(self, each: UnitInReview) -> Grid:
        return Grid.of(read_header(self.task.cases[each.unit.case_id].images[0]))

    def _drawing(self, each: UnitInReview, classes: np.ndarray) -> bytes:
        grid, hidden = self._grid(each), self.task.ignore_value
        if classes.shape != grid.shape:
            raise DataError(f"{each.unit.name} has shape {classes.shape}, its image {grid.shape}")
        outside = 0 if each.unit.region or hidden is None else hidden
        return drawing_for_page(np.where(classes == IGNORED, outside, classes), grid)

    def _load(self, round_number: int) -> TrainedRun:
        from alseg.engine.trained_run import load_trained  # here: it imports what trains

        return load_trained(str(self.run_folder), round_number, self.trusted_packages)

    def _predict(self, round_number: int, case_id: str) -> bytes:
        from alseg.engine.one_case import segmented

        classes = segmented(self._network(round_number), self.task, case_id).numpy()
        return drawing_for_page(classes, Grid.of(read_header(self.task.cases[case_id].images[0])))


def _subject(review: Review) -> tuple[str, str]:
    """The case and region that a review is of; one that was asked for twice has one label."""
    return review.case, review.region
