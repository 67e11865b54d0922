"""What there is to review in a run: what its queries asked for, and the files that show it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alseg.core.errors import DataError
from alseg.core.pool import Pool
from alseg.core.units import Unit, region_from_text
from alseg.data.annotation import Annotation, as_annotations
from alseg.data.task import Task
from alseg.oracles.annotations import Annotation as Version
from alseg.oracles.annotations import Annotations
from alseg.run.folder import (
    INITIAL_REQUEST,
    MAPS_FOLDER,
    PROPOSALS_FOLDER,
    UNCERTAINTY_FOLDER,
    request_folder,
    request_of_round,
    round_folder,
)
from alseg.run.requests import read_requests
from alseg.run.state import RunState
from alseg.system.files import checksum_of, is_within


@dataclass(frozen=True)
class UnitInReview:
    """A unit of a query.

    Attributes:
        round_name: ``initial``, ``round_01``, ...
        round_number: whose network asked for it; 0 for the initial pool.
        unit: the unit.
        score: that it was chosen by; None where there is none.
        request: the name of the request folder that asks for it; empty in a simulation.
        label: what may be read of its label; None while it is hidden, or not made.
        version: of that label; None for one that nobody has made in this run.
    """

    round_name: str
    round_number: int
    unit: Unit
    score: float | None
    request: str
    label: Annotation | None
    version: Version | None

    @property
    def checksum(self) -> str:
        """Of the label file; empty without one."""
        if self.version is not None:
            return self.version.checksum
        return "" if self.label is None else checksum_of(self.label.path)

    def kept(self, run_folder: Path, *, uncertainty: bool) -> Path | None:
        """The prediction, or the map of its uncertainty, that the run has kept; None for none."""
        case_id, folder = self.unit.case_id, round_folder(run_folder, self.round_number)
        kind, part = (
            ("uncertainty", UNCERTAINTY_FOLDER) if uncertainty else ("prediction", PROPOSALS_FOLDER)
        )
        paths = [folder / MAPS_FOLDER / f"{case_id}_{kind}.nii.gz"]
        if self.request:
            paths.insert(0, request_folder(run_folder, self.request) / part / f"{case_id}.nii.gz")
        return next((p for p in paths if p.is_file() and is_within(p, run_folder)), None)


def units_in_review(run_folder: Path, task: Task) -> list[UnitInReview]:
    """What the queries of a run have asked for, in their order, and what it waits for now.

    A label is there only if the run has revealed it, or people have made it.

    Raises:
        DataError: if a file of the run is damaged, or the data set has lost a case.
    """
    state = RunState.load(run_folder) if RunState.is_in(run_folder) else None
    rows = () if state is None else state.queries
    pool = Pool((), ()) if state is None else state.pool
    requests = read_requests(run_folder)
    asked_by = {case_id: each.name for each in requests for case_id in each.case_ids}
    history = Annotations(run_folder)
    made, labelled = history.newest(), set(pool.labelled)
    found = [
        (name_of_round(row["round"]), row["round"], _unit(row), row.get("score")) for row in rows
    ]
    known = {row["case_id"] for row in rows}
    for request in requests[-1:]:
        number = state.finished_rounds + 1 if state and request.name != INITIAL_REQUEST else 0
        waiting = [item for item in request.items if item.unit.case_id not in known]
        found += [(request.name, number, item.unit, item.score) for item in waiting]

    def label_of(unit: Unit) -> Annotation | None:
        if unit.case_id in made:
            return Annotation(history.folder / made[unit.case_id].file)
        path = task.cases[unit.case_id].label
        if unit.case_id not in labelled or path is None:
            return None
        return as_annotations({unit.case_id: path}, pool)[unit.case_id]

    if gone := [unit.case_id for _, _, unit, _ in found if unit.case_id not in task.cases]:
        raise DataError(f"{task.root} no longer has the case {gone[0]} of the run in {run_folder}")
    return [
        UnitInReview(
            round_name=name,
            round_number=number,
            unit=unit,
            score=score,
            request=asked_by.get(unit.case_id, ""),
            label=label_of(unit),
            version=made.get(unit.case_id),
        )
        for name, number, unit, score in found
    ]


def name_of_round(number: int) -> str:
    """What the query of a round is called, as its request would be."""
    return request_of_round(number) if number else INITIAL_REQUEST


def _unit(row: dict[str, object]) -> Unit:
    where = row.get("region")
    return Unit(str(row["case_id"]), region_from_text(str(where)) if where else None)
