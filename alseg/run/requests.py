"""What a person has been asked to annotate: the request folders of a run.

A folder is laid out as a store of MONAI Label: images at its top, proposals in ``labels/original``,
answers in ``labels/final``. ``request.json`` is written last: a folder that has one is complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from alseg.core.errors import DataError
from alseg.core.units import Query, Unit, as_unit
from alseg.run.folder import (
    PROPOSALS_FOLDER,
    REQUEST_FILE,
    REQUEST_TABLE,
    REQUESTS_FOLDER,
    WORKLIST_FILE,
    request_folder,
)
from alseg.system.files import (
    checksum_of,
    name_file_in_errors,
    read_json,
    write_atomically,
    write_json,
)

OPEN, ANNOTATED, REFUSED = "open", "annotated", "refused"  # the states of a unit
RETURNED = "returned to the pool"  # a round goes ahead without it


@dataclass(frozen=True)
class Item:
    """One unit that is to be annotated.

    Attributes:
        unit: the unit.
        score: that it was chosen by; None where there is none.
        images: the names of its images in the request folder, one a channel or one for all.
        proposal: the checksum of its proposal; empty without one.
        left_over: the checksum of a label that lay in an earlier request's folder when this one was
            laid out, and that had not been used; empty without one.
    """

    unit: Unit
    score: float | None
    images: tuple[str, ...]
    proposal: str = ""
    left_over: str = ""


@dataclass(frozen=True)
class Request:
    """What is asked for at one time.

    Attributes:
        name: of its folder: ``initial``, ``round_01``, ...
        query: the whole query, in the order of acquisition.
        items: the units of it that have no label yet, in the same order.
    """

    name: str
    query: Query
    items: tuple[Item, ...]

    @property
    def case_ids(self) -> list[str]:
        """The cases that are to be annotated."""
        return [item.unit.case_id for item in self.items]


def proposal_file(run_folder: Path, name: str, case_id: str) -> Path:
    """Where the proposed segmentation of a case lies in a request."""
    return request_folder(run_folder, name) / PROPOSALS_FOLDER / f"{case_id}.nii.gz"


def unchanged_proposal(run_folder: Path, request: Request, case_id: str) -> Path | None:
    """What was proposed for a case, if there is a proposal and nobody has changed it."""
    for item in request.items:
        if item.unit.case_id == case_id and item.proposal:
            path = proposal_file(run_folder, request.name, case_id)
            return path if checksum_of(path) == item.proposal else None
    return None


def write_request(run_folder: Path, request: Request, classes: Mapping[int, str]) -> None:
    """Write the tables of a request, and at last ``request.json``.

    Args:
        run_folder: the run's.
        request: what is asked for.
        classes: the name of each value that a label may hold.

    Raises:
        StorageError: if they cannot be written.
    """
    folder = request_folder(run_folder, request.name)
    write_states(run_folder, request, {})
    write_atomically(folder / WORKLIST_FILE, _worklist(request).to_csv(index=False))
    items = [
        {"order": order, **asdict(item.unit), "score": item.score, "images": list(item.images)}
        | {"proposal": item.proposal, "left_over": item.left_over}
        for order, item in enumerate(request.items, start=1)
    ]
    query = [asdict(unit) for unit in request.query]
    named = {str(value): name for value, name in classes.items()}
    content = {"name": request.name, "classes": named, "query": query, "units": items}
    write_json(folder / REQUEST_FILE, content)


def write_states(run_folder: Path, request: Request, states: Mapping[str, str]) -> None:
    """Write ``request.csv``: order, case, score and state of each unit.

    The file is as old as the last call, whether or not anything in it has changed: a label that is
    newer has not been looked at.

    Args:
        run_folder: the run's.
        request: what is asked for.
        states: by case, of ``OPEN`` and its like; open where it is not named.
    """
    rows = [
        (order, item.unit.case_id, item.score, states.get(item.unit.case_id, OPEN))
        for order, item in enumerate(request.items, start=1)
    ]
    path = request_folder(run_folder, request.name) / REQUEST_TABLE
    text = pd.DataFrame(rows, columns=["order", "case", "score", "state"]).to_csv(index=False)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        with name_file_in_errors(path):
            path.touch()
    else:
        write_atomically(path, text)


def read_states(run_folder: Path, name: str) -> dict[str, str]:
    """The state of each case of a request, as ``write_states`` has written it last.

    Raises:
        DataError: if the table is damaged.
    """
    path = request_folder(run_folder, name) / REQUEST_TABLE
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return dict(zip(table["case"], table["state"], strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def is_looked_at(run_folder: Path, name: str, label: Path) -> bool:
    """Whether the run has looked at the labels of a request since this one came."""
    table = request_folder(run_folder, name) / REQUEST_TABLE
    return label.lstat().st_mtime_ns <= table.lstat().st_mtime_ns


def read_request(run_folder: Path, name: str) -> Request | None:
    """The request of that name; None if none has been completed.

    Raises:
        DataError: if its ``request.json`` is damaged.
    """
    path = request_folder(run_folder, name) / REQUEST_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        items = tuple(
            Item(
                as_unit(each),
                each["score"],
                tuple(each["images"]),
                each["proposal"],
                each["left_over"],
            )
            for each in content["units"]
        )
        return Request(name, tuple(map(as_unit, content["query"])), items)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a valid request: {error!r}") from error


def read_requests(run_folder: Path) -> list[Request]:
    """All requests that have been completed, the first one first."""
    folders = sorted((run_folder / REQUESTS_FOLDER).glob(f"*/{REQUEST_FILE}"))
    found = [read_request(run_folder, path.parent.name) for path in folders]
    return [request for request in found if request is not None]


def _worklist(request: Request) -> pd.DataFrame:
    """The table that 3D Slicer's SlicerCaseIterator reads; paths are relative to the folder."""
    rows = [
        (item.images[0], f"{PROPOSALS_FOLDER}/{item.unit.case_id}.nii.gz" if item.proposal else "")
        for item in request.items
    ]
    return pd.DataFrame(rows, columns=["image", "mask"])
