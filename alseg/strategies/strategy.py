"""A strategy composes a measure, an aggregation and a selector."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from alseg.core.errors import ConfigError, ScoringError, check_choice
from alseg.core.units import Region, Unit
from alseg.strategies.image_similarity import ImageSimilarity
from alseg.strategies.measures import entropy
from alseg.strategies.selectors.candidates import Candidates, Selector
from alseg.strategies.statistics import KEPT, VoxelStatistics, WatchedStatistics

Measure = Callable[[VoxelStatistics], Tensor]  # -> [D, H, W]
Aggregation = Callable[[Tensor, VoxelStatistics], float]
ClassScores = Callable[[VoxelStatistics], Tensor]  # -> [C - 1]

FEATURES = ("mean", "foreground")


@dataclass(frozen=True, slots=True)
class CaseScore:
    """What a strategy keeps of one case: a few numbers, never a volume.

    Attributes:
        case_id: the case.
        score: higher means acquire first; None if the strategy has no measure.
        class_scores: one number a foreground class, where the strategy asks for them.
        features: a feature vector in float32, where the strategy asks for one.
        labelled: whether the case is labelled already and serves only as a reference.
        n_passes: how many passes the score was taken from.
        pass_scores: the score after each of them, where a rule decided when to stop.
        region: the part of the case that was scored; None for all of it.
        plain_passes: what scoring the case took, in windows that went through the network over the
            windows of the volume; the deterministic pass of a gate counts.
        expected: what a deterministic pass expects of the score, up to a factor that the volumes of
            a pool share; None where nothing does.
    """

    case_id: str
    score: float | None = None
    class_scores: tuple[float, ...] | None = None
    features: array[float] | None = None
    labelled: bool = False
    n_passes: int | None = None
    pass_scores: tuple[float, ...] | None = None
    region: Region | None = None
    plain_passes: float | None = None
    expected: float | None = None

    @property
    def unit(self) -> Unit:
        """What was scored."""
        return Unit(self.case_id, self.region)

    @property
    def name(self) -> str:
        """The unit's name, the case's for a whole volume."""
        return self.unit.name


def feature_vector(values: Iterable[float]) -> array[float]:
    """Features as ``CaseScore`` holds them: 4 bytes a number, which compare as a whole."""
    return array("f", values)


def feature_matrix(scores: Sequence[CaseScore]) -> np.ndarray | None:
    """The feature vectors of those that have one, [n, d] in float32; None if none has."""
    vectors = [np.frombuffer(s.features, np.float32) for s in scores if s.features is not None]
    return np.stack(vectors) if vectors else None


@dataclass(frozen=True)
class Strategy:
    """An acquisition strategy.

    Attributes:
        name: how tables, plots and the tracking store call it.
        selector: from candidates to a query.
        measure: from statistics to a voxel map; None for a strategy without scores.
        aggregation: from a voxel map to a score; needed if there is a measure.
        class_scores: from statistics to one score a foreground class, for selectors by class.
        features: pool the activations of the network's bottleneck, for selectors by diversity:
            their ``mean`` over the volume, or over the predicted ``foreground``.
        similarity: compare the images of the candidates with the labelled ones, for selectors by
            diversity that look only at images.
        deterministic: look at one pass of the plain network instead of the uncertainty source's
            many; needs no dropout.
        full_data: label the whole pool before the first round, the upper reference.
        reads_labels: whether it sees hidden labels, which no honest strategy does; shown wherever
            the strategy is reported.

    Raises:
        ConfigError: if the parts do not fit together.
    """

    name: str
    selector: Selector
    measure: Measure | None = None
    aggregation: Aggregation | None = None
    class_scores: ClassScores | None = None
    features: str | None = None
    similarity: ImageSimilarity | None = None
    deterministic: bool = False
    full_data: bool = False
    reads_labels: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"strategy.name is {self.name!r}; it must be text")
        if not callable(self.selector):
            raise ConfigError(
                f"strategy.selector is {self.selector!r}; it must be a selector, such as that of "
                "strategy/selector=top_k"
            )
        if (self.measure is None) != (self.aggregation is None):
            raise ConfigError(f"strategy {self.name}: measure and aggregation come together or not")
        if self.features is not None:
            check_choice(f"strategy {self.name}: features", self.features, FEATURES)
        # A part that the selector misses should not come to light after hours of training.
        rehearsal = self._rehearsal()
        try:
            self.select(rehearsal, 2, np.random.default_rng(0))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"strategy {self.name}: {error}") from error
        if self.measure is not None and "scores" not in rehearsal.looked_at:
            raise ConfigError(
                f"strategy {self.name}: its selector looks at no score, so that measure and "
                "aggregation would change nothing; choose another strategy/selector, or a strategy "
                "without a measure"
            )

    @property
    def title(self) -> str:
        """The name for tables and plots, with a warning where hidden labels are read."""
        return f"{self.name} (reads hidden labels)" if self.reads_labels else self.name

    @property
    def needs_prediction(self) -> bool:
        """Whether the network has to see the pool before a selection."""
        return not (self.measure is None and self.class_scores is None and self.features is None)

    @property
    def needs_passes(self) -> bool:
        """Whether it needs the many passes of the uncertainty source."""
        return self.needs_prediction and not self.deterministic

    @cached_property
    def has_schedule(self) -> bool:
        """Whether its selector looks at how far the run is, and so at the number of its rounds."""
        return self._looks_at("progress")

    @cached_property
    def looks_at_classes(self) -> bool:
        """Whether its selector looks at which classes the labelled cases hold."""
        return self._looks_at("labelled_classes")

    @cached_property
    def statistics_read(self) -> frozenset[str]:
        """Which of ``statistics.KEPT`` its parts read, from trying them on invented predictions.

        All of them for a part that does not belong to alseg: it may read others another time.
        """
        parts = (self.measure, self.aggregation, self.class_scores)
        functions = [unwrapped(part) for part in parts if part is not None]
        if not all(getattr(f, "__module__", "").startswith("alseg.") for f in functions):
            return KEPT
        watched = WatchedStatistics()
        noise = torch.Generator().manual_seed(0)
        for _ in range(2):
            watched.update(torch.randn(3, 8, 8, 8, generator=noise).softmax(dim=0))
        watched.attach_hidden_label(torch.ones(8, 8, 8, dtype=torch.uint8))
        self.score("rehearsal", watched)
        return KEPT & watched.looked_at

    def uncertainty_map(self, statistics: VoxelStatistics) -> Tensor:
        """The voxel map [D, H, W]; for pictures, the entropy where there is no measure."""
        return (self.measure or entropy)(statistics)

    def score(
        self,
        case_id: str,
        statistics: VoxelStatistics,
        features: Tensor | None = None,
        labelled: bool = False,
    ) -> CaseScore:
        """Score one case from the statistics of its passes.

        Args:
            case_id: the case.
            statistics: of its passes.
            features: its feature vector [d].
            labelled: whether it is labelled already; then only its features are kept.

        Raises:
            ScoringError: if a score or a feature is not finite.
        """
        score, class_scores = None, None
        if self.aggregation is not None and not labelled:
            score = float(self.aggregation(self.uncertainty_map(statistics), statistics))
        if self.class_scores is not None and not labelled:
            class_scores = tuple(self.class_scores(statistics).tolist())
        vector = None if features is None else feature_vector(features.tolist())
        found = CaseScore(case_id, score, class_scores, vector, labelled, statistics.n_passes)
        self.check_finite(found)
        return found

    def check_finite(self, found: CaseScore) -> None:
        """Check that all numbers of a score are some.

        Raises:
            ScoringError: naming the first that is not.
        """
        for kind, values in (
            ("score", (found.score,)),
            ("class score", found.class_scores),
            ("feature", found.features),
        ):
            for value in values or ():
                if value is not None and not math.isfinite(value):
                    raise ScoringError(f"strategy {self.name} gave {found.name} the {kind} {value}")

    def select(
        self, candidates: Candidates, query_size: int, rng: np.random.Generator
    ) -> list[str]:
        """Choose the query: at most ``query_size`` distinct candidates, in order of acquisition.

        Raises:
            ScoringError: if the selector returns anything else.
        """
        expected = min(query_size, len(candidates.ids))
        chosen = self.selector(candidates, expected, rng) if expected else []
        if len(chosen) != expected or not set(chosen) <= set(candidates.ids):
            raise ScoringError(
                f"strategy {self.name} must select {expected} distinct candidates, got {chosen}"
            )
        if len(set(chosen)) != expected:
            raise ScoringError(f"strategy {self.name} selected a candidate twice: {chosen}")
        return chosen

    def _looks_at(self, attribute: str) -> bool:
        """Whether its selector looks at an attribute of the candidates."""
        rehearsal = self._rehearsal()
        self.select(rehearsal, 2, np.random.default_rng(0))
        return attribute in rehearsal.looked_at

    def _rehearsal(self) -> _Watched:
        """Three invented candidates with what this strategy knows of a case."""
        numbers = np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 5.0]])

        class Rehearsal(_Watched):
            looked_at: ClassVar = set[str]()

        return Rehearsal(
            ids=("rehearsal_1", "rehearsal_2", "rehearsal_3"),
            scores=numbers[:, 0] if self.measure else None,
            class_scores=numbers if self.class_scores else None,
            features=numbers if self.features else None,
            similarity=numbers[:, 1] / 10 if self.similarity else None,
        )


def unwrapped(part: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a part, without the arguments that a YAML has given it."""
    return unwrapped(part.func) if isinstance(part, partial) else part


class _Watched(Candidates):
    """Candidates that note which of their attributes a selector looks at, in ``looked_at``.

    So do those that a selector makes of them. Copying them counts as looking at all fields.
    """

    looked_at: ClassVar[set[str]]

    def __getattribute__(self, name: str) -> Any:
        type(self).looked_at.add(name)
        return super().__getattribute__(name)


def candidates_from(
    scores: Iterable[CaseScore],
    *,
    round_number: int = 1,
    n_rounds: int = 2,
    labelled: Iterable[str] = (),
) -> Candidates:
    """Sort scored units by name into candidates, the labelled ones' features apart.

    Args:
        scores: of candidates, and of labelled units where features are compared with theirs.
        round_number: the round that acquires, from 1.
        n_rounds: rounds of the run.
        labelled: labelled volumes; one of them that is a candidate again is a reference as well.
    """
    known = set(labelled)
    ordered = sorted(scores, key=lambda s: s.name)
    waiting = [s for s in ordered if not s.labelled]
    return Candidates(
        ids=tuple(s.name for s in waiting),
        scores=_rows([s.score for s in waiting]),
        class_scores=_rows([s.class_scores for s in waiting]),
        features=feature_matrix(waiting),
        labelled_features=feature_matrix([s for s in ordered if s.labelled or s.name in known]),
        round_number=round_number,
        n_rounds=n_rounds,
        cases=tuple(s.case_id for s in waiting),
    )


def _rows(values: list[float | None] | list[tuple[float, ...] | None]) -> np.ndarray | None:
    """One row a case; None where the strategy keeps no such value."""
    if not values or values[0] is None:
        return None
    return np.array(values, dtype=np.float64)
