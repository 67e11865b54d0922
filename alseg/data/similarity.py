"""How much the candidates' images resemble the labelled ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alseg.data.cache import VolumeCache
from alseg.strategies.image_similarity import ImageSimilarity


class LabelledSimilarity:
    """Compares candidates with labelled images, each pair once in a process.

    An image's coarse description (14 kB a channel by default) is computed once and kept beside the
    preprocessed volume. Memory holds the descriptions of the labelled images and one number a pair
    of candidate and labelled image: never one a pair of candidates.

    Args:
        cache: the preprocessed volumes.
        similarity: how two images are compared.
    """

    def __init__(self, cache: VolumeCache, similarity: ImageSimilarity) -> None:
        self.cache = cache
        self.similarity = similarity
        self._labelled: dict[str, np.ndarray] = {}
        self._values: dict[str, dict[str, float]] = {}  # by candidate, then by labelled case

    def __call__(self, candidates: Sequence[str], labelled: Sequence[str]) -> np.ndarray:
        """The similarity of each candidate to the labelled images except itself, shape [n]."""
        references = {case_id: self._reference(case_id) for case_id in labelled}
        for case_id in candidates:
            known = self._values.setdefault(case_id, {})
            missing = [other for other in labelled if other not in known]
            if missing:
                image = self._description(case_id)
                known |= {o: self.similarity.between(image, references[o]) for o in missing}
        values = [[self._values[c][other] for other in labelled if other != c] for c in candidates]
        # a repeatable candidate may be all that is labelled: it resembles itself
        return np.array([self.similarity.to_labelled(np.array(v or [1.0])) for v in values])

    def _reference(self, case_id: str) -> np.ndarray:
        if case_id not in self._labelled:
            self._labelled[case_id] = self._description(case_id)
        return self._labelled[case_id]

    def _description(self, case_id: str) -> np.ndarray:
        similarity = self.similarity
        return self.cache.derived(case_id, similarity.fingerprint, similarity.describe).numpy()
