"""Selectors: from the candidates' scores to the query, a list of distinct case ids.

A selector takes the candidates, the query size and a seeded generator, and returns ids in the order
of acquisition. Candidates arrive sorted by id, so the result does not depend on the order in which
the pool was scored. A new selector is one function here and one YAML under conf/strategy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Candidates:
    """The unlabelled cases of a round, sorted by id.

    Attributes:
        ids: the case ids.
        scores: one finite score a case, shape [len(ids)]; None if the strategy needs no scores.
    """

    ids: tuple[str, ...]
    scores: np.ndarray | None = None

    def require_scores(self) -> np.ndarray:
        """The scores.

        Raises:
            ValueError: if there are none, because the strategy has no measure.
        """
        if self.scores is None:
            raise ValueError("this selector needs scores: give the strategy a measure")
        return self.scores


def top_k(candidates: Candidates, query_size: int, rng: np.random.Generator) -> list[str]:
    """The ``query_size`` highest scores; equal scores in the order of their case ids."""
    # A stable sort of the negated scores keeps the id order within ties.
    order = np.argsort(-candidates.require_scores(), kind="stable")
    return [candidates.ids[i] for i in order[:query_size]]


def random(candidates: Candidates, query_size: int, rng: np.random.Generator) -> list[str]:
    """Cases drawn uniformly without replacement: the baseline that a strategy has to beat."""
    order = rng.permutation(len(candidates.ids))
    return [candidates.ids[i] for i in order[:query_size]]
