"""What reviewers have said of the labels of a run: rows that are added, and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

import pandas as pd

from alseg.core.errors import DataError, check_choice
from alseg.oracles.annotations import Annotation
from alseg.run.folder import ANNOTATIONS_FOLDER, ANNOTATIONS_LOCK, REVIEWS_FILE
from alseg.system.files import locked, write_atomically

ACCEPTED, RETURNED = "accepted", "returned"
VERDICTS = (ACCEPTED, RETURNED)


@dataclass(frozen=True)
class Review:
    """A verdict on a label: a row of ``annotations/reviews.csv``.

    Attributes:
        time: when, ISO 8601.
        reviewer: who.
        round: whose query asked for it: ``initial``, ``round_01``, ...
        case: the case.
        region: the part of it, as ``Unit.where``; empty for the whole volume.
        version: of the label in the history of annotations; empty for a label of the data set.
        checksum: of the label file.
        verdict: ``accepted`` or ``returned``.
        comment: what the reviewer says; may be empty.
    """

    time: str
    reviewer: str
    round: str
    case: str
    region: str
    version: str
    checksum: str
    verdict: str
    comment: str


COLUMNS = [field.name for field in fields(Review)]


class Reviews:
    """The reviews of a run.

    Args:
        run_folder: the run's.
    """

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / ANNOTATIONS_FOLDER / REVIEWS_FILE

    @property
    def history(self) -> list[Review]:
        """All of them, the oldest first.

        Raises:
            DataError: if the file is damaged.
        """
        if not self.path.is_file():
            return []
        try:
            table = pd.read_csv(self.path, dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error
        if list(table.columns) != COLUMNS:
            raise DataError(f"{self.path} has the columns {list(table.columns)}, not {COLUMNS}")
        return [Review(*row) for row in table.itertuples(index=False)]

    def add(
        self,
        *,
        reviewer: str,
        round_name: str,
        case_id: str,
        region: str,
        version: str,
        checksum: str,
        verdict: str,
        comment: str,
    ) -> Review:
        """Add a review; see ``Review``.

        Raises:
            ConfigError: if there is no such verdict.
            StorageError: if it cannot be written.
        """
        check_choice("verdict", verdict, VERDICTS)
        added = Review(
            time=datetime.now().astimezone().isoformat(timespec="seconds"),
            reviewer=reviewer,
            round=round_name,
            case=case_id,
            region=region,
            version=version,
            checksum=checksum,
            verdict=verdict,
            comment=comment,
        )
        self.path.parent.mkdir(exist_ok=True)
        with locked(self.path.parent / ANNOTATIONS_LOCK):
            rows = [asdict(each) for each in (*self.history, added)]
            write_atomically(self.path, pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))
        return added

    def returned(self, newest: Mapping[str, Annotation]) -> dict[str, Review]:
        """The cases whose newest version has been returned, with the last word on it.

        Args:
            newest: the newest version of each case.
        """
        last = {each.case: each for each in self.history}
        return {
            case_id: review
            for case_id, review in last.items()
            if review.verdict == RETURNED
            and case_id in newest
            and review.version == str(newest[case_id].version)
        }
