"""The table of a prediction: a row a case, and which cases are worth a look.

The rule: a case is worth a look if nothing was found in it; if it lacks a class that most cases
have; and, from ``ENOUGH`` cases on, if its uncertainty or the volume of a class is an outlier among
them, beyond the quartiles by more than 1.5 times their distance (Tukey, Exploratory Data Analysis,
1977), of volumes by their logarithm. That a case is not named does not make it right.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from alseg.core.errors import DataError
from alseg.system.files import name_file_in_errors, write_atomically

DONE, REFUSED, WRITING = "done", "refused", "writing"
ENOUGH = 8  # cases, for quartiles that mean something
FIRST = ("case", "status", "look", "rank", "uncertainty")
LAST = ("seconds", "file", "message", "checksum", "made_of")


class PredictionTable:
    """A CSV file that rows are appended to, and that continues where a process has left it.

    A row is one write, so that a process that is killed leaves whole rows, or a last one that is
    cut off, which is left out. The last row of a case counts. ``save`` leaves one row a case.

    Columns: ``case``; ``status`` (done, refused, or writing: it was interrupted there); ``look``,
    why the case is worth a look; ``rank`` by uncertainty, 1 is the highest; ``uncertainty``, the
    mean over the predicted foreground and two voxels around it; ``voxels_CLASS`` and ``ml_CLASS``;
    ``seconds``; ``file``; ``message``, why it was refused or what its header leaves open;
    ``checksum`` of the file; ``made_of``, a hash of all that it depends on.

    Args:
        path: of the file.
        classes: the foreground classes.

    Raises:
        DataError: if there is another table at ``path``.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.path = path
        self.classes = tuple(classes)
        sizes = [f"{kind}_{name}" for name in classes for kind in ("voxels", "ml")]
        self.columns = [*FIRST, *sizes, *LAST]
        self.rows: dict[str, dict[str, Any]] = {}
        self._is_whole = False  # whether the file has all rows, and ends in a whole one
        if path.exists():
            self._read()

    def _read(self) -> None:
        texts = dict.fromkeys(
            ("case", "status", "look", "file", "message", "checksum", "made_of"), str
        )
        try:
            table = pd.read_csv(
                io.StringIO(self._whole_rows()),
                dtype=texts,
                keep_default_na=False,
                na_values={name: [""] for name in self.columns if name not in texts},
            )
            numbers = [name for name in self.columns if name not in texts and name in table]
            table = table.astype(dict.fromkeys(numbers, float))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} cannot be read: {error}; give another output") from error
        if list(table.columns) != self.columns:
            raise DataError(
                f"{self.path} is not a table of these classes ({', '.join(self.classes)}): it "
                "belongs to something else; give another output"
            )
        self.rows = {row["case"]: row for row in table.to_dict("records")}

    def _whole_rows(self) -> str:
        """The text of the file without a last row that lacks fields."""
        text = self.path.read_text(encoding="utf-8")
        before, end, last = text.rpartition("\n")
        n_fields = len(next(csv.reader([last]), []))
        return text if n_fields == len(self.columns) else before + end

    def note(self, case_id: str, **values: Any) -> None:
        """Write the row of a case; of what all rows together say it has nothing yet.

        Raises:
            StorageError: if it cannot be written.
        """
        row = dict.fromkeys(self.columns, np.nan) | dict.fromkeys(LAST, "") | {"look": ""}
        self.rows[case_id] = row | {"case": case_id} | values
        if not self._is_whole:
            self.save()
            return
        line = self._typed([self.rows[case_id]]).to_csv(index=False, header=False)
        with name_file_in_errors(self.path), self.path.open("ab", buffering=0) as file:
            file.write(line.encode("utf-8"))

    def save(self) -> None:
        """Write the file again: a row a case, with what is worth a look and the ranks.

        Raises:
            StorageError: if it cannot be written.
        """
        write_atomically(self.path, self.table().to_csv(index=False))
        self._is_whole = True

    def table(self) -> pd.DataFrame:
        """All rows by case, with what is worth a look and the ranks of the rows so far."""
        table = self._typed(self.rows.values()).sort_values("case")
        table["look"] = reasons_to_look(table, self.classes)
        done = table["status"] == DONE
        table["rank"] = table["uncertainty"].where(done).rank(ascending=False, method="min")
        return table.astype({"rank": "Int64"})

    def _typed(self, rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
        counts = ["rank", *(f"voxels_{name}" for name in self.classes)]
        return pd.DataFrame(rows, columns=self.columns).astype(dict.fromkeys(counts, "Int64"))


def reasons_to_look(table: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    """Why each case of a table is worth a look, by the rule of this module; empty if it is not."""
    done = table["status"] == DONE
    sizes = table[[f"voxels_{name}" for name in classes]].astype(float)
    empty = done & (sizes.sum(axis=1) == 0)
    flags = {"nothing found": empty}
    for name in classes:
        has = done & (sizes[f"voxels_{name}"] > 0)
        if has.sum() > done.sum() / 2:
            flags[f"no {name}"] = done & ~has & ~empty
        volumes = np.log(table[f"ml_{name}"].astype(float).where(has))
        low, high = fences(volumes)
        flags[f"little {name}"], flags[f"much {name}"] = volumes < low, volumes > high
    uncertainty = table["uncertainty"].astype(float).where(done)
    flags["uncertain"] = uncertainty > fences(uncertainty)[1]
    by_case = zip(*(flag.to_numpy() for flag in flags.values()), strict=True)
    return ["; ".join(compress(flags, of_case)) for of_case in by_case]


def fences(values: pd.Series) -> tuple[float, float]:
    """Tukey's fences of the values that are there; infinite for fewer than ``ENOUGH``."""
    known = values.dropna()
    if len(known) < ENOUGH:
        return -np.inf, np.inf
    low, high = np.quantile(known, (0.25, 0.75))
    return low - 1.5 * (high - low), high + 1.5 * (high - low)
