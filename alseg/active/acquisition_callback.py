"""The acquisition after each round: collect scores, choose the query, ask the oracle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl

from alseg.active.answer_costs import AnswerCosts
from alseg.active.query_selection import Chooser, Chosen
from alseg.core.pool import Pool
from alseg.core.seeding import seed_for
from alseg.core.units import Unit
from alseg.data.annotation import Annotation, revealed
from alseg.oracles.base import Oracle, annotated
from alseg.run.score_journal import ScoreFile
from alseg.scoring.shrinkage import settled
from alseg.strategies.strategy import CaseScore
from alseg.system.distributed import rank
from alseg.training.callbacks.predictions import Collection, gather


@dataclass(frozen=True)
class Acquired:
    """What an acquisition led to.

    Attributes:
        pool: the new pool.
        queries: one row an acquired unit, in the order of acquisition, see ``query_rows``.
        labels: what the oracle has revealed of each case's label, with what it had before.
        seconds: that the oracle took.
    """

    pool: Pool
    queries: tuple[dict[str, Any], ...]
    labels: Mapping[str, Annotation]
    seconds: float = field(default=0.0, compare=False)


class AcquisitionCallback(Collection):
    """Collects the scores of a prediction run over the candidates and acquires.

    It acts three times: at the end of the prediction run it chooses the query, which is saved; it
    has the query annotated; and it makes the new pool, which nobody else does. For a strategy that
    needs no prediction ``choose`` is called without a prediction run.

    Args:
        chooser: chooses the query.
        oracle: annotates it.
        answer_costs: says what annotating the query's units costs.
        save: saves the query, before the oracle is asked: an answer may take longer than a process
            lives.
        earlier: the scores that an interrupted prediction run has left.
        file: keeps those that come in.
    """

    def __init__(
        self,
        chooser: Chooser,
        oracle: Oracle,
        answer_costs: AnswerCosts,
        save: Callable[[Chosen], None],
        earlier: Sequence[CaseScore] = (),
        file: ScoreFile | None = None,
    ) -> None:
        super().__init__(earlier if rank() == 0 else ())
        self.chooser = chooser
        self.oracle = oracle
        self.answer_costs = answer_costs
        self.save = save
        self.file = file
        self.chosen: Chosen | None = None

    def keep(self, outputs: list[CaseScore]) -> None:
        """Keep the scores of some cases, in the file as well."""
        super().keep(outputs)
        if self.file is not None:
            self.file.append(outputs)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose by all ranks' scores."""
        self.choose(settled(gather(self.outputs)))

    def choose(self, scores: Sequence[CaseScore] | None = None) -> None:
        """Choose the query and save it; nobody is asked for a label.

        Args:
            scores: as for ``Chooser.choose``.
        """
        self.chosen = self.chooser.choose(scores)
        self.save(self.chosen)

    def annotate(self, chosen: Chosen) -> Acquired:
        """Have a query annotated and make the new pool.

        Raises:
            NotAnnotatedYetError: if there is no answer for a part of it that is waited for.
        """
        pool, started = self.chooser.pool, time.monotonic()
        answer = annotated(self.oracle, chosen.query).with_unrequested(pool.unlabelled)
        seconds = time.monotonic() - started
        columns = self.answer_costs(answer, pool)
        new_pool = pool.after(answer)
        return Acquired(
            pool=new_pool,
            queries=query_rows(self.chooser.round_number, answer.labels, chosen.scores, columns),
            labels=revealed(answer, new_pool),
            seconds=seconds,
        )


def candidate_cases(
    selectable: Sequence[str], n_candidates: int | None, base_seed: int, round_number: int
) -> tuple[str, ...]:
    """The cases that a round chooses its query from: all, or a random subset of ``n_candidates``.

    Every case has a random number of its own in a round, and the lowest ones are taken. So all
    strategies of a seed have the same candidates as far as the same cases are still selectable.

    Args:
        selectable: the cases that may be acquired.
        n_candidates: how many to take; None for all.
        base_seed: the seed of what is labelled.
        round_number: the round.
    """
    if n_candidates is None:
        return tuple(selectable)
    numbered = sorted((seed_for(base_seed, round_number, "candidate", i), i) for i in selectable)
    return tuple(sorted(case_id for _, case_id in numbered[:n_candidates]))


def query_rows(
    round_number: int,
    query: Iterable[Unit],
    scores: Mapping[str, float],
    columns: Mapping[Unit, Mapping[str, Any]],
) -> tuple[dict[str, Any], ...]:
    """Rows of queries.csv: rank 1 is acquired first; the score is None where there is none.

    Args:
        round_number: the round; 0 for the initial pool.
        query: the units, in the order of acquisition.
        scores: by the units' names.
        columns: what annotating has shown of each unit, see ``AnswerCosts``.
    """
    return tuple(
        {
            "round": round_number,
            "case_id": unit.case_id,
            "score": scores.get(unit.name),
            "rank": rank,
            **columns[unit],
        }
        for rank, unit in enumerate(query, start=1)
    )
