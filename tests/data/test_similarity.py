"""Images compared once, from descriptions that are kept beside the preprocessed volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from alseg.data.cache import VolumeCache
from alseg.data.formats.msd import read_msd
from alseg.data.similarity import LabelledSimilarity
from alseg.strategies.image_similarity import ImageSimilarity

LABELLED = ["phantom_000", "phantom_001"]
CANDIDATES = ["phantom_004", "phantom_005", "phantom_006"]


def test_similarity_is_the_mean_nmi_and_each_pair_is_compared_once(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    between = ImageSimilarity.between

    def counted(self: ImageSimilarity, a: np.ndarray, b: np.ndarray) -> float:
        compared.append(1)
        return between(self, a, b)

    monkeypatch.setattr(ImageSimilarity, "between", counted)
    cache = VolumeCache(read_msd(phantoms), [], "none", tmp_path)
    settings = ImageSimilarity(grid=(8, 8, 8), bins=8)
    similarity = LabelledSimilarity(cache, settings)
    values = similarity(CANDIDATES, LABELLED)
    described = {i: settings.describe(cache.image(i)["image"])[0] for i in CANDIDATES + LABELLED}
    expected = [
        np.mean([normalized_mutual_info_score(described[c], described[r]) for r in LABELLED])
        for c in CANDIDATES
    ]
    assert values == pytest.approx(expected, abs=1e-12)
    assert len(compared) == 6
    assert len(list(tmp_path.glob("derived-*.pt"))) == 5
    # a candidate was acquired: only the pairs with it are new
    similarity(CANDIDATES[1:], [*LABELLED, CANDIDATES[0]])
    assert len(compared) == 8
    # one that may be repeated is not compared with itself
    nmi = normalized_mutual_info_score(described[LABELLED[0]], described[LABELLED[1]])
    assert similarity(LABELLED[:1], LABELLED[:2]) == pytest.approx([nmi], abs=1e-12)
    assert similarity(LABELLED[:1], LABELLED[:1]) == [1]
