"""Selectors that take the highest scores."""

from __future__ import annotations

import numpy as np

from alseg.strategies.selectors.candidates import Candidates, Selector


def top_k(candidates: Candidates, query_size: int, rng: np.random.Generator) -> list[str]:
    """The ``query_size`` highest scores; equal scores in the order of their case ids.

    Bias: alike volumes are all uncertain at once, so a query tends to repeat itself.
    """
    return highest(candidates, candidates.require_scores(), query_size)


def prefilter(
    candidates: Candidates,
    query_size: int,
    rng: np.random.Generator,
    *,
    multiple: float,
    then: Selector,
) -> list[str]:
    """The ``multiple`` x k highest scores, of which another selector, a diverse one, chooses.

    Source: the two steps of suggestive annotation, Yang et al. (MICCAI 2017), section 2.3.

    Args:
        candidates: the unlabelled cases.
        query_size: k.
        rng: handed on.
        multiple: at least 1; 1 is ``top_k``.
        then: chooses k of those that are left.
    """
    if not multiple >= 1:
        raise ValueError(f"multiple is {multiple}; it must be at least 1")
    n_kept = max(query_size, round(multiple * query_size))
    order = np.argsort(-candidates.require_scores(), kind="stable")
    return then(candidates.subset(order[:n_kept]), query_size, rng)


def highest(candidates: Candidates, keys: np.ndarray, query_size: int) -> list[str]:
    """The candidates with the highest keys; ties go to the smaller id."""
    # A stable sort of the negated keys keeps the id order within ties.
    order = np.argsort(-keys, kind="stable")
    return [candidates.ids[i] for i in order[:query_size]]
