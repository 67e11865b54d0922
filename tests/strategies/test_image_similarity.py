"""Mutual information of images against scikit-learn, and the selector against hand cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from alseg.core.errors import ConfigError
from alseg.strategies.image_similarity import ImageSimilarity, normalized_mutual_information
from alseg.strategies.selectors.diverse import mi_diversity
from tests.strategies.builders import candidates_of, indices_of

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("seed", range(5))
def test_nmi_is_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 8, 500).astype(np.uint8)
    b = np.where(rng.random(500) < 0.6, (a * 3) % 8, rng.integers(0, 8, 500)).astype(np.uint8)
    expected = normalized_mutual_info_score(a, b)
    assert normalized_mutual_information(a, b, 8) == pytest.approx(expected, abs=1e-12)


def test_nmi_by_hand() -> None:
    a = np.array([0, 0, 1, 1], np.uint8)
    assert normalized_mutual_information(a, 1 - a, 2) == pytest.approx(
        1
    )  # one determines the other
    assert normalized_mutual_information(a, np.array([0, 1, 0, 1], np.uint8), 2) == pytest.approx(0)
    constant = np.zeros(4, np.uint8)
    assert normalized_mutual_information(constant, constant, 2) == 1
    assert normalized_mutual_information(a, constant, 2) == 0


def test_images_of_any_shape_and_contrast_are_comparable() -> None:
    image = torch.rand(2, 12, 10, 9, generator=torch.Generator().manual_seed(0))
    similarity = ImageSimilarity(grid=(6, 5, 3), bins=16)
    description = similarity.describe(image)
    assert description.shape == (2, 90)
    assert description.dtype == torch.uint8
    same = similarity.between(description.numpy(), similarity.describe(3 * image - 7).numpy())
    assert same == pytest.approx(1)
    other = similarity.describe(torch.rand(2, 30, 8, 20)).numpy()
    assert similarity.between(description.numpy(), other) < 0.8
    flat = similarity.describe(torch.ones(1, 2, 2, 2))
    assert (flat == 0).all()


def test_to_labelled_takes_the_mean_or_the_maximum() -> None:
    values = np.array([0.2, 0.4])
    assert ImageSimilarity().to_labelled(values) == pytest.approx(0.3)
    assert ImageSimilarity(over_labelled="max").to_labelled(values) == 0.4


def test_score_weighs_uncertainty_and_diversity() -> None:
    # scaled: u = (0, 0.5, 1), s = (0, 0.25, 1)
    candidates = candidates_of([1.0, 2.0, 3.0], similarity=[0.2, 0.3, 0.6])
    # alpha = 1: keys 0, 0.25, 0, ties by id
    assert indices_of(mi_diversity(candidates, 3, RNG)) == [1, 0, 2]
    # alpha = 2: keys 0, 1 - 0.125, 2 - 0.5
    assert indices_of(mi_diversity(candidates, 3, RNG, alpha=2)) == [2, 1, 0]
    # alpha = 0.5: keys 0, 0.25 - 0.5, 0.5 - 2
    assert indices_of(mi_diversity(candidates, 3, RNG, alpha=0.5)) == [0, 1, 2]
    equal = candidates_of([1.0, 1.0], similarity=[0.5, 0.5])
    assert indices_of(mi_diversity(equal, 2, RNG)) == [0, 1]


def test_what_is_missing_or_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="similarity"):
        mi_diversity(candidates_of([1.0, 2.0]), 1, RNG)
    with pytest.raises(ValueError, match="alpha is 0"):
        mi_diversity(candidates_of([1.0], similarity=[0.0]), 1, RNG, alpha=0)
    for wrong in (
        {"bins": 1},
        {"bins": 999},
        {"grid": (2, 2)},
        {"quantiles": (0.9, 0.1)},
        {"over_labelled": "min"},
    ):
        with pytest.raises(ConfigError, match="similarity"):
            ImageSimilarity(**wrong)  # type: ignore[arg-type]
