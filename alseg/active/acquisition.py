"""The acquisition after each round: collect scores, select, ask the oracle, make the new pool."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl

from alseg.core.errors import ScoringError
from alseg.core.pool import Pool
from alseg.core.seeding import seed_for
from alseg.oracles.base import Oracle
from alseg.oracles.costs import AnnotationCost
from alseg.run.score_journal import ScoreFile
from alseg.strategies.selectors.candidates import Candidates
from alseg.strategies.strategy import CaseScore, Strategy, candidates_from
from alseg.system.distributed import rank
from alseg.training.callbacks.collection import Collection, gather

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Acquired:
    """What an acquisition led to.

    Attributes:
        pool: the new pool.
        queries: one row an acquired case, in the order of acquisition: round, case_id, score, rank,
            cost.
        labels: the label files that the oracle revealed.
        scores: of all candidates and the labelled cases they were compared with; empty for a
            strategy that needs no prediction.
        similarities: of the candidates to the labelled images, for a strategy that compares them.
    """

    pool: Pool
    queries: tuple[dict[str, Any], ...]
    labels: Mapping[str, Path]
    scores: tuple[CaseScore, ...]
    similarities: Mapping[str, float]


class Acquisition(Collection):
    """Collects the scores of a prediction run over the pool and acquires the query at its end.

    It is the only place that makes a new pool. For a strategy that needs no prediction ``acquire``
    is called without a prediction run.
    """

    def __init__(
        self,
        strategy: Strategy,
        oracle: Oracle,
        query_size: int,
        base_seed: int,
        n_rounds: int,
        cost: AnnotationCost,
        similarity: Callable[[Sequence[str], Sequence[str]], np.ndarray] | None = None,
    ) -> None:
        super().__init__()
        self.strategy = strategy
        self.oracle = oracle
        self.query_size = query_size
        self.base_seed = base_seed
        self.n_rounds = n_rounds
        self.cost = cost
        self.similarity = similarity  # of candidates to labelled cases, by their images
        self.acquired: Acquired | None = None
        self._pool: Pool | None = None
        self._candidates: tuple[str, ...] = ()
        self._round_number = 0
        self._file: ScoreFile | None = None

    def start_round(
        self, pool: Pool, round_number: int, candidates: Sequence[str] | None = None
    ) -> None:
        """Acquire from this pool from now on.

        Args:
            pool: the round's pool.
            round_number: the round.
            candidates: the cases that the query may choose, labelled ones among them where they may
                be repeated; None for the unlabelled ones.
        """
        self._pool = pool
        self._candidates = tuple(sorted(pool.unlabelled if candidates is None else candidates))
        self._round_number = round_number
        self.outputs, self._file, self.acquired = [], None, None

    def go_on_from(self, scores: Sequence[CaseScore], file: ScoreFile) -> None:
        """Start from the scores of an interrupted pass; keep those that come in a file."""
        self.outputs, self._file = list(scores) if rank() == 0 else [], file

    def keep(self, outputs: list[CaseScore]) -> None:
        """Keep the scores of some cases, in the file as well."""
        super().keep(outputs)
        if self._file is not None:
            self._file.append(outputs)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Acquire from all ranks' scores."""
        self.acquire(gather(self.outputs))

    def acquire(self, scores: list[CaseScore] | None = None) -> None:
        """Select the query, ask the oracle and make the new pool.

        Args:
            scores: one for each candidate, and for labelled cases that serve as a reference; None
                for a strategy that needs no prediction.

        Raises:
            ScoringError: if the scored cases are not exactly the candidates.
        """
        if self._pool is None:
            raise RuntimeError("start_round has not been called")
        pool = self._pool
        if scores is None:
            candidates = Candidates(
                ids=self._candidates,
                round_number=self._round_number,
                n_rounds=self.n_rounds,
            )
        else:
            candidates = candidates_from(
                scores,
                round_number=self._round_number,
                n_rounds=self.n_rounds,
                labelled=pool.labelled,
            )
            if candidates.ids != self._candidates:
                difference = sorted(set(candidates.ids) ^ set(self._candidates))
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
        similarities: dict[str, float] = {}
        if self.similarity is not None:
            similarity = self.similarity(candidates.ids, pool.labelled)
            candidates = replace(candidates, similarity=similarity)
            similarities = dict(zip(candidates.ids, similarity.tolist(), strict=True))
        rng = np.random.default_rng(seed_for(self.base_seed, self._round_number, "selection"))
        chosen = self.strategy.select(candidates, self.query_size, rng)
        unlabelled = set(pool.unlabelled)
        new = [case_id for case_id in chosen if case_id in unlabelled]
        again = [case_id for case_id in chosen if case_id not in unlabelled]
        labels = self.oracle.annotate(chosen)
        # a case that is acquired again has its annotation already
        costs = dict.fromkeys(again, 0.0) | {c: self.cost(labels[c]) for c in new}
        by_case = {s.case_id: s.score for s in scores or () if s.score is not None}
        self.acquired = Acquired(
            pool=pool.acquire(new).repeat(again),
            queries=query_rows(self._round_number, chosen, by_case, costs),
            labels=labels,
            scores=tuple(scores or ()),
            similarities=similarities,
        )

    def result(self) -> Acquired:
        """What the acquisition of this round led to."""
        if self.acquired is None:
            raise RuntimeError("nothing has been acquired in this round")
        return self.acquired


def candidate_cases(
    selectable: Sequence[str], n_candidates: int | None, base_seed: int, round_number: int
) -> tuple[str, ...]:
    """The cases that a round chooses its query from: all, or a random subset of ``n_candidates``.

    Every case has a random number of its own in a round, and the lowest ones are taken. So all
    strategies of a seed have the same candidates as far as the same cases are still selectable.

    Args:
        selectable: the cases that may be acquired.
        n_candidates: how many to take; None for all.
        base_seed: the run's seed.
        round_number: the round.
    """
    if n_candidates is None:
        return tuple(selectable)
    numbered = sorted((seed_for(base_seed, round_number, "candidate", i), i) for i in selectable)
    return tuple(sorted(case_id for _, case_id in numbered[:n_candidates]))


def query_rows(
    round_number: int,
    case_ids: Sequence[str],
    scores: Mapping[str, float],
    costs: Mapping[str, float],
) -> tuple[dict[str, Any], ...]:
    """Rows of queries.csv: rank 1 is acquired first; the score is None where there is none."""
    return tuple(
        {
            "round": round_number,
            "case_id": case_id,
            "score": scores.get(case_id),
            "rank": rank,
            "cost": costs[case_id],
        }
        for rank, case_id in enumerate(case_ids, start=1)
    )
