"""How a round's query is chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from alseg.core.errors import ScoringError
from alseg.core.pool import Pool
from alseg.core.seeding import seed_for
from alseg.core.units import Query, whole
from alseg.strategies.selectors.candidates import Candidates
from alseg.strategies.strategy import CaseScore, Strategy, candidates_from

log = logging.getLogger(__name__)

Similarity = Callable[[Sequence[str], Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Chosen:
    """A query, and what it was chosen by.

    Attributes:
        query: the units, in the order of acquisition.
        scores: of the cases in it that have one.
        case_scores: of all candidates and the labelled cases they were compared with; empty for a
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
        query_size: how many volumes.
        base_seed: the run's seed.
        n_rounds: rounds of the run.
        round_number: the round.
        pool: what it begins with.
        candidates: the cases that may be chosen, labelled ones among them where they may be
            repeated.
        reference: the labelled cases that the network has been trained on, which a strategy may
            compare the candidates with.
        similarity: of candidates to labelled cases by their images, where the strategy asks for it.
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

    def choose(self, scores: Sequence[CaseScore] | None = None) -> Chosen:
        """Choose the query; nobody is asked for a label.

        Args:
            scores: one for each candidate, and for labelled cases that serve as a reference; None
                for a strategy that needs no prediction.

        Raises:
            ScoringError: if the scored cases are not exactly the candidates.
        """
        candidates = self._unscored() if scores is None else self._scored(scores)
        if self.query_size > len(candidates.ids):
            log.warning(
                f"pool.query_size is {self.query_size}, and {len(candidates.ids)} volumes are left "
                "to choose from: the query takes all of them"
            )
        similarities: dict[str, float] = {}
        if self.similarity is not None:
            similarity = self.similarity(candidates.ids, self.reference)
            candidates = replace(candidates, similarity=similarity)
            similarities = dict(zip(candidates.ids, similarity.tolist(), strict=True))
        rng = np.random.default_rng(seed_for(self.base_seed, self.round_number, "selection"))
        chosen = self.strategy.select(candidates, self.query_size, rng)
        by_case = {s.case_id: s.score for s in scores or () if s.score is not None}
        return Chosen(
            query=whole(chosen),
            scores={case_id: by_case[case_id] for case_id in chosen if case_id in by_case},
            case_scores=tuple(scores or ()),
            similarities=similarities,
        )

    def _unscored(self) -> Candidates:
        return Candidates(
            ids=tuple(sorted(self.candidates)),
            round_number=self.round_number,
            n_rounds=self.n_rounds,
        )

    def _scored(self, scores: Sequence[CaseScore]) -> Candidates:
        candidates = candidates_from(
            scores,
            round_number=self.round_number,
            n_rounds=self.n_rounds,
            labelled=self.reference,
        )
        if candidates.ids != tuple(sorted(self.candidates)):
            difference = sorted(set(candidates.ids) ^ set(self.candidates))
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
