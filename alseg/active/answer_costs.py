"""What the units of an answer of the oracle cost, and what they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alseg.core.pool import Pool
from alseg.core.units import Answer, Unit
from alseg.oracles.annotated_voxels import annotated_units
from alseg.oracles.costs import AnnotationCost, Effort, contents


@dataclass(frozen=True)
class AnswerCosts:
    """Says what annotating the units of a query has cost: columns of queries.csv.

    Attributes:
        cost: of annotating a unit.
        ignore_value: what voxels that nobody annotated have in label files; None for none.
        effort: what a region's minutes are computed from; None where units are whole volumes, of
            which ``cost`` is all that is reported.
    """

    cost: AnnotationCost
    ignore_value: int | None = None
    effort: Effort | None = None

    def __call__(self, answer: Answer, pool: Pool) -> dict[Unit, dict[str, Any]]:
        """``cost`` of each unit; of regions also where they lie and what they hold.

        Args:
            answer: of the oracle.
            pool: before it; a volume that is acquired again has its annotation already.
        """
        known = {Unit(case_id) for case_id in pool.labelled}
        columns: dict[Unit, dict[str, Any]] = {unit: {"cost": 0.0} for unit in answer.labels}
        new = {unit: path for unit, path in answer.labels.items() if unit not in known}
        for unit, annotated in annotated_units(new, self.ignore_value):
            columns[unit] = {"cost": self.cost(annotated)}
            if self.effort is not None:
                columns[unit] |= {"region": unit.where, **contents(annotated, self.effort)}
        return columns
