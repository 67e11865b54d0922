"""How rounds are evaluated: by which networks, on which grid, and by which metrics."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from alseg.core.errors import (
    ConfigError,
    check_choice,
    check_number,
    check_whole_number,
    nearest,
)
from alseg.core.metric_names import DICE, TITLES

SOURCE, GRID = "source", "grid"
NAN, ZERO = "nan", "zero"


@dataclass(frozen=True)
class Evaluation:
    """The settings ``evaluation.*``.

    Attributes:
        space: ``source``, the grid of each case's own files, or ``grid``, the preprocessed one.
        metrics: of ``core.metric_names.TITLES``; in its order once they are checked.
        tolerance_mm: of the surface Dice: a number, or one for each foreground class by name.
        absent: what a class counts that a case's reference does not have: ``nan``, nothing, or
            ``zero``, the worst value if the prediction has it and the best if not.
        networks: how many a round trains, by seeds of their own, to evaluate their mean prediction.

    Raises:
        ConfigError: naming the first setting that cannot be used.
    """

    space: str = SOURCE
    metrics: Sequence[str] = (DICE,)
    tolerance_mm: float | Mapping[str, float] = 2.0
    absent: str = NAN
    networks: int = 1

    def __post_init__(self) -> None:
        check_choice("evaluation.space", self.space, (SOURCE, GRID))
        # Hydra reads a bare nan on the command line as a number
        if isinstance(self.absent, float) and math.isnan(self.absent):
            object.__setattr__(self, "absent", NAN)
        check_choice("evaluation.absent", self.absent, (NAN, ZERO))
        check_whole_number("evaluation.networks", self.networks, at_least=1)
        object.__setattr__(self, "metrics", known_metrics(self.metrics))
        if isinstance(self.tolerance_mm, Mapping):
            for name, tolerance in self.tolerance_mm.items():
                check_number(f"evaluation.tolerance_mm.{name}", tolerance, above=0)
        else:
            check_number("evaluation.tolerance_mm", self.tolerance_mm, above=0)

    @property
    def in_source(self) -> bool:
        """Whether predictions are carried back to the grid of the files."""
        return self.space == SOURCE

    @property
    def needs_distances(self) -> bool:
        """Whether a metric is of distances in mm."""
        return tuple(self.metrics) != (DICE,)

    @property
    def in_training(self) -> Evaluation:
        """What validates while a network trains: Dice on the preprocessed grid, the cheapest."""
        return replace(self, space=GRID, metrics=(DICE,))

    def tolerance_of(self, name: str) -> float:
        """The tolerance of a foreground class, in mm."""
        of_classes = self.tolerance_mm
        return of_classes[name] if isinstance(of_classes, Mapping) else of_classes

    def check_classes(self, names: Collection[str]) -> None:
        """Check that tolerances by class are those of a data set's foreground classes.

        Raises:
            ConfigError: naming the class that is missing or unknown.
        """
        if not isinstance(self.tolerance_mm, Mapping):
            return
        for name in self.tolerance_mm:
            if name not in names:
                raise ConfigError(
                    f"evaluation.tolerance_mm names the class {name!r}, which the data set lacks; "
                    f"{nearest(name, names)}its foreground classes are {', '.join(names)}"
                )
        if missing := [name for name in names if name not in self.tolerance_mm]:
            raise ConfigError(
                f"evaluation.tolerance_mm has no tolerance for {', '.join(missing)}; give one for "
                "each foreground class, or one number for all"
            )


def known_metrics(names: object) -> tuple[str, ...]:
    """The metrics of a setting, each once, in the order of columns.

    Raises:
        ConfigError: if one is unknown, or Dice is missing, which judges a run.
    """
    if not isinstance(names, Sequence) or isinstance(names, str):
        raise ConfigError(
            f"evaluation.metrics is {names!r}; it must be a list, such as [{', '.join(TITLES)}]"
        )
    for name in names:
        if name not in TITLES:
            raise ConfigError(
                f"evaluation.metrics has no metric {name!r}; {nearest(str(name), TITLES)}allowed "
                f"are {', '.join(TITLES)}"
            )
    if DICE not in names:
        raise ConfigError(f"evaluation.metrics lacks {DICE}, by which a run is judged; add it")
    return tuple(name for name in TITLES if name in names)
