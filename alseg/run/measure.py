"""By which Dice a run is judged, and how that and annotation costs are called.

The Dice is the test part's, or without a test part that of validation: of the part that validates,
or of all annotated cases, each judged by a network that has not seen it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from alseg.core.metric_names import DICE, TITLES, UNDEFINED_HD95


@dataclass(frozen=True)
class Measure:
    """A part of the data whose Dice judges a run.

    Attributes:
        part: how the columns of metrics.csv begin that hold its Dice.
        name: how people call the part.
        title: how they call its mean Dice.
        short: the part where it stands in a narrow column.
    """

    part: str
    name: str
    title: str
    short: str

    @property
    def label(self) -> str:
        """How people call its Dice where something else has said that there is no test part."""
        return f"{self.name} Dice"

    @property
    def column(self) -> str:
        """The column of the mean Dice."""
        return self.of_metric(DICE)

    def of_class(self, name: str) -> str:
        """The column of a class's Dice."""
        return self.of_metric(DICE, name)

    def of_metric(self, metric: str, name: str | None = None) -> str:
        """The column of the mean of a metric, or of a class's.

        Args:
            metric: of ``core.metric_names.TITLES``.
            name: of the class.
        """
        return f"{self.part}_{metric}" if name is None else f"{self.part}_{metric}_{name}"

    @property
    def undefined_hd95(self) -> str:
        """The column of how many HD95 of a class in a case are not defined."""
        return f"{self.part}_{UNDEFINED_HD95}"

    def further_metrics(self, columns: Collection[str]) -> tuple[str, ...]:
        """The metrics beside Dice that columns of metrics.csv hold."""
        return tuple(m for m in TITLES if m != DICE and self.of_metric(m) in columns)

    def classes(self, columns: Iterable[str]) -> tuple[str, ...]:
        """The foreground classes that columns of metrics.csv hold a Dice of."""
        prefix = self.of_class("")
        return tuple(c.removeprefix(prefix) for c in columns if c.startswith(prefix))


def cost_axis(unit: str) -> str:
    """How the axis of an annotation cost is called.

    Args:
        unit: what ``cost`` counts, such as ``foreground_voxels``.
    """
    if unit == "volume":
        return "labelled volumes"
    if unit == "effort":
        return "minutes of effort"
    words = unit.replace("_", " ")
    return f"{words} of annotation" if unit == "minutes" else f"annotated {words}"


TEST = Measure("test", "test", "test Dice", "test")
VALIDATION = Measure("val", "validation", "validation Dice (no test part)", "val")
CROSS = Measure("val", "cross-validation", "cross-validated Dice", "cross")
FOLDS = "folds"  # the column of metrics.csv that only cross-validation has: how many


def measure_of(columns: Iterable[str]) -> Measure:
    """By which Dice a run is judged whose metrics.csv has these columns."""
    return TEST if TEST.column in columns else validation_of(columns)


def validation_of(columns: Iterable[str]) -> Measure:
    """What validates a run whose metrics.csv has these columns, whatever it is judged by."""
    return CROSS if FOLDS in columns else VALIDATION
