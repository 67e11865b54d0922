"""How a round's query is chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from alseg.core.errors import ScoringError
from alseg.core.pool import Pool
from alseg.core.seeding import seed_for
from alseg.core.units import Query, Unit
from alseg.strategies.selectors.candidates import Candidates
from alseg.strategies.strategy import CaseScore, Strategy, candidates_from

log = logging.getLogger(__name__)

Similarity = Callable[[Sequence[str], Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Chosen:
    """A query, and what it was chosen by.

    Attributes:
        query: the units, in the order of acquisition.
        scores: of the units in it that have one, by name.
        case_scores: of all candidates and the labelled units they were compared with; empty for a
            strategy that needs no prediction.
        similarities: of the candidates to the labelled images, for a strategy that compares them.
    """

    query: Query
    scores: Mapping[str, float]
    case_scores: tuple[CaseScore, ...] = ()
    similarities: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Chooser:
    """Chooses the query of one round.

    Attributes:
        strategy: chooses.
        query_size: how many units.
        base_seed: of its random draws.
        n_rounds: rounds of the run.
        round_number: the round.
        pool: what it begins with.
        candidates: the cases that may be chosen, labelled ones among them where they may be
            repeated.
        reference: the labelled cases that the network has been trained on, which a strategy may
            compare the candidates with.
        similarity: of candidates to labelled cases by their images, where the strategy asks for it.
        is_for_regions: whether scores are those of regions, of which a case has several or none.
        draw: draws the query where it is one of regions and the strategy needs no prediction.
        classes_of: whether each foreground class is in what has been revealed of cases' labels,
            [n, C - 1]; asked only if the strategy looks at it.
    """

    strategy: Strategy
    query_size: int
    base_seed: int
    n_rounds: int
    round_number: int
    pool: Pool
    candidates: tuple[str, ...]
    reference: tuple[str, ...]
    similarity: Similarity | None = None
    is_for_regions: bool = False
    draw: Callable[[], Query] | None = None
    classes_of: Callable[[Sequence[str]], np.ndarray] | None = None

    def choose(self, scores: Sequence[CaseScore] | None = None) -> Chosen:
        """Choose the query; nobody is asked for a label.

        Args:
            scores: one for each candidate, and for labelled cases that serve as a reference; None
                for a strategy that needs no prediction.

        Raises:
            ScoringError: if the scored cases are not exactly the candidates.
        """
        if scores is None and self.draw is not None:
            query = self.draw()
            self._warn_of_few(len(query))
            return Chosen(query, scores={})
        candidates = self._unscored() if scores is None else self._scored(scores)
        self._warn_of_few(len(candidates.ids))
        similarities: dict[str, float] = {}
        if self.similarity is not None:
            similarity = self.similarity(candidates.ids, self.reference)
            candidates = replace(candidates, similarity=similarity)
            similarities = dict(zip(candidates.ids, similarity.tolist(), strict=True))
        if self.classes_of is not None and self.strategy.looks_at_classes:
            held = self.classes_of(self.pool.labelled)
            candidates = replace(candidates, labelled_classes=held)
        rng = np.random.default_rng(seed_for(self.base_seed, self.round_number, "selection"))
        chosen = self.strategy.select(candidates, self.query_size, rng)
        by_name = {s.name: s for s in scores or () if not s.labelled}
        return Chosen(
            query=tuple(by_name[n].unit if n in by_name else Unit(n) for n in chosen),
            scores={
                name: score
                for name in chosen
                if name in by_name and (score := by_name[name].score) is not None
            },
            case_scores=tuple(scores or ()),
            similarities=similarities,
        )

    def _warn_of_few(self, n_left: int) -> None:
        if self.query_size > n_left:
            log.warning(
                f"pool.query_size is {self.query_size}, and {n_left} "
                f"{'regions' if self.is_for_regions else 'volumes'} are left to choose from: the "
                "query takes all of them"
            )

    def _unscored(self) -> Candidates:
        return Candidates(
            ids=tuple(sorted(self.candidates)),
            round_number=self.round_number,
            n_rounds=self.n_rounds,
            labelled=self.pool.labelled,
        )

    def _expected(self, scores: Sequence[CaseScore]) -> tuple[str, ...]:
        """The names of what must be scored: each candidate, or regions of it, be there any."""
        if not self.is_for_regions:
            return tuple(sorted(self.candidates))
        cases = set(self.candidates)
        return tuple(sorted({s.name for s in scores if not s.labelled and s.case_id in cases}))

    def _scored(self, scores: Sequence[CaseScore]) -> Candidates:
        candidates = candidates_from(
            scores,
            round_number=self.round_number,
            n_rounds=self.n_rounds,
            labelled=self.reference,
        )
        candidates = replace(candidates, labelled=self.pool.labelled)
        expected = self._expected(scores)
        if candidates.ids != expected:
            difference = sorted(set(candidates.ids) ^ set(expected))
            raise ScoringError(
                "the scored cases are not the candidates, they differ in (or repeat): "
                f"{', '.join(difference) or 'repeated cases'}"
            )
        known = candidates.scores
        if known is not None and len(known) > self.query_size and np.ptp(known) == 0:
            log.warning(
                f"all {len(known)} candidates have the score {known[0]:g}, so it chooses none "
                "of them: does the strategy compare passes, of which there is one?"
            )
        return candidates
