"""A case of a request, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alseg.data.file_types import ANSWER_ENDINGS
from alseg.run.folder import ANSWERS_FOLDER, DRAFTS_FOLDER, UNCERTAINTY_FOLDER
from alseg.run.requests import Item, Request


@dataclass(frozen=True)
class Place:
    """A case of a request, and where its files are.

    Attributes:
        request: what asks for it.
        folder: of the request.
        item: the unit.
    """

    request: Request
    folder: Path
    item: Item

    @property
    def case_id(self) -> str:
        """The case."""
        return self.item.unit.case_id

    @property
    def answer(self) -> Path | None:
        """The label that has been handed in, as a file of any of its endings."""
        paths = [
            self.folder / ANSWERS_FOLDER / f"{self.case_id}{ending}" for ending in ANSWER_ENDINGS
        ]
        return next((path for path in paths if path.exists() or path.is_symlink()), None)

    @property
    def draft(self) -> Path:
        """What is being drawn."""
        return self.folder / DRAFTS_FOLDER / f"{self.case_id}.nii.gz"

    @property
    def uncertainty(self) -> Path:
        """The map of where the network is unsure; there may be none."""
        return self.folder / UNCERTAINTY_FOLDER / f"{self.case_id}.nii.gz"
