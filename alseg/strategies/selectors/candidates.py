"""What a selector chooses from, and what a selector is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alseg.strategies.selectors.feature_space import standardised


@dataclass(frozen=True)
class Candidates:
    """The unlabelled cases of a round, sorted by id.

    Attributes:
        ids: the case ids, n of them.
        scores: one finite score a case, shape [n]; None if the strategy has no measure.
        class_scores: one score a case and foreground class, shape [n, C - 1], where the strategy
            asks for them.
        features: a feature vector a case, shape [n, d], where the strategy asks for them.
        labelled_features: the same of the m labelled cases, shape [m, d].
        similarity: how much each image resembles the labelled ones, in [0, 1], shape [n], where the
            strategy asks for it.
        round_number: the round that acquires, from 1.
        n_rounds: rounds of the run; the last one acquires nothing.
        labelled: the ids of the labelled cases, whether or not they have features.
        cases: the ids of the cases that candidates lie in, n of them, where these are regions;
            empty where they are the cases.
        labelled_classes: whether each foreground class is in what has been revealed of each
            labelled case, shape [len(labelled), C - 1], where a selector looks at it.
    """

    ids: tuple[str, ...]
    scores: np.ndarray | None = None
    class_scores: np.ndarray | None = None
    features: np.ndarray | None = None
    labelled_features: np.ndarray | None = None
    similarity: np.ndarray | None = None
    round_number: int = 1
    n_rounds: int = 2
    labelled: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    labelled_classes: np.ndarray | None = None

    @property
    def progress(self) -> float:
        """How far the acquisitions are, from 0 to 1; see the function."""
        return progress(self.round_number, self.n_rounds)

    def require_scores(self) -> np.ndarray:
        """The scores.

        Raises:
            ValueError: if there are none, because the strategy has no measure.
        """
        if self.scores is None:
            raise ValueError("this selector needs scores: give the strategy a measure")
        return self.scores

    def require_class_scores(self) -> np.ndarray:
        """The scores by class.

        Raises:
            ValueError: if there are none.
        """
        if self.class_scores is None:
            raise ValueError("this selector needs class scores: give the strategy class_scores")
        return self.class_scores

    def require_labelled_classes(self) -> np.ndarray:
        """Which classes each labelled case holds; of no case where none is labelled.

        Raises:
            ValueError: if cases are labelled and nobody has said it.
        """
        if self.labelled_classes is None and self.labelled:
            raise ValueError("this selector needs to know which classes the labelled cases hold")
        return np.zeros((0, 0), bool) if self.labelled_classes is None else self.labelled_classes

    def require_similarity(self) -> np.ndarray:
        """The similarities to the labelled images.

        Raises:
            ValueError: if there are none.
        """
        if self.similarity is None:
            raise ValueError("this selector compares images: give the strategy a similarity")
        return self.similarity

    def standard_features(self) -> tuple[np.ndarray, np.ndarray]:
        """Features of the candidates [n, d] and of the labelled cases [m, d], standardised.

        Each number is centred and scaled to unit variance over both together, so that no channel
        rules the distances for its scale; one that is the same in all cases becomes 0. In float64,
        of more than ``feature_space.MOST_EXACT`` together in float32.

        Raises:
            ValueError: if there are none.
        """
        if self.features is None:
            raise ValueError("this selector needs features: give the strategy features")
        labelled = self.labelled_features
        if labelled is None:
            labelled = np.empty((0, self.features.shape[1]), dtype=self.features.dtype)
        both = standardised(np.concatenate([self.features, labelled]))
        return both[: len(self.ids)], both[len(self.ids) :]

    def after(self, chosen: Sequence[str]) -> Candidates:
        """The candidates that are left once some of them have been chosen.

        Those count as labelled for whatever looks at cases or features; what their labels hold is
        not known.
        """
        taken = set(chosen)
        is_left = np.array([name not in taken for name in self.ids], dtype=bool)
        cases, references = self.cases or self.ids, self.labelled_features
        new = [case for case, left in zip(cases, is_left, strict=True) if not left]
        if self.features is not None:
            known = [] if references is None else [references]
            references = np.concatenate([*known, self.features[~is_left]])
        return replace(
            self.subset(np.flatnonzero(is_left)),
            labelled=tuple(dict.fromkeys((*self.labelled, *new))),
            labelled_features=references,
            labelled_classes=None,
        )

    def subset(self, indices: np.ndarray) -> Candidates:
        """Some of the candidates, sorted by id again."""
        kept = np.sort(indices)

        def rows(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[kept]

        return replace(
            self,
            ids=tuple(self.ids[i] for i in kept),
            scores=rows(self.scores),
            class_scores=rows(self.class_scores),
            features=rows(self.features),
            similarity=rows(self.similarity),
            cases=tuple(self.cases[i] for i in kept) if self.cases else (),
        )


def progress(round_number: int, n_rounds: int) -> float:
    """How far the acquisitions of a run are: 0 at the first or only one, 1 at the last.

    Args:
        round_number: the round that acquires, from 1.
        n_rounds: rounds of the run; the last one acquires nothing.
    """
    return (round_number - 1) / max(n_rounds - 2, 1)


Selector = Callable[[Candidates, int, np.random.Generator], list[str]]
Schedule = Callable[[float], float]  # from progress in [0, 1] to a value
