"""Pseudo-labels from intensities, and draws that mix them with annotated volumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alseg.core.errors import ConfigError, DataError
from alseg.core.units import whole
from alseg.data.annotation import Annotation
from alseg.data.cache import VolumeCache
from alseg.data.formats.msd import read_msd
from alseg.data.pseudo_labelled import IntensityLabel, MixedDraws, ProxyDraws, PseudoLabel
from alseg.oracles.simulated import SimulatedOracle
from alseg.system.files import write_tensors


@pytest.fixture
def cache(phantoms: Path, tmp_path: Path) -> VolumeCache:
    return VolumeCache(read_msd(phantoms), [], "none", tmp_path)


@pytest.fixture
def image() -> torch.Tensor:
    """Dark ground, a grey cube of 4, a grey cube of 3, a bright cube, a grey speck."""
    image = torch.zeros(1, 12, 12, 12)
    image[0, :4, :4, :4] = 0.6
    image[0, 8:11, :3, :3] = 0.6
    image[0, :3, 8:11, 8:11] = 1.0
    image[0, 11, 11, 11] = 0.6
    return image


def test_intensity_labels_by_hand(image: torch.Tensor) -> None:
    def size(**settings: object) -> int:
        label = IntensityLabel(**settings)(image)  # type: ignore[arg-type]
        assert label.shape == image.shape
        assert label.dtype == torch.uint8
        return int(label.sum())

    grey = {"window": [0.4, 0.8], "side": "both", "opening_voxels": 0}
    assert size(**grey) == 64
    assert size(**grey, n_components=2) == 64 + 27
    assert size(**grey, n_components=9) == 64 + 27 + 1
    # an opening of one voxel takes the speck, and corners that a ball does not reach
    opened = IntensityLabel([0.4, 0.8], "both", 1, 9)(image)
    assert opened[0, 11, 11, 11] == 0
    # Otsu in the window [0, 0.8]: grey above, dark below
    assert size(window=[0.0, 0.8], side="above", opening_voxels=0) == 64
    below = size(window=[0.0, 0.8], side="below", opening_voxels=0)
    assert below == 12**3 - 64 - 27 - 27 - 1
    assert size(window=[5.0, 6.0]) == 0


def test_proxy_draws_read_no_label_file(cache: VolumeCache) -> None:
    ids = list(cache.task.cases)[:2]
    label = IntensityLabel([0.0, 200.0], "both")
    draws = ProxyDraws(label, cache, {}, ids, [], 4, 1, 0)
    sample = draws[0]
    image = cache.image(draws.case_ids[0])["image"]
    assert torch.equal(torch.as_tensor(sample["label"]), label(image))


def test_mixed_draws_hold_their_share_and_weights(cache: VolumeCache, tmp_path: Path) -> None:
    annotated = list(cache.task.cases)[:2]
    revealed = SimulatedOracle(cache.task).annotate(whole(annotated)).by_case
    labels = {case_id: Annotation(path) for case_id, path in revealed.items()}
    pseudo = {}
    for weight, case_id in zip((0.5, 0.25, 0.75), list(cache.task.cases)[2:5], strict=True):
        path = tmp_path / f"{case_id}.pt"
        write_tensors(path, torch.full_like(cache.image(case_id)["image"], 1, dtype=torch.uint8))
        pseudo[case_id] = PseudoLabel(path, weight)
    draws = MixedDraws(pseudo, 0.25, cache, labels, annotated, [], 12, 1, 1)
    assert [case_id in annotated for case_id in draws.case_ids] == [False, False, False, True] * 3
    predicted = [case_id for case_id in draws.case_ids if case_id in pseudo]
    assert sorted(predicted[:3]) == sorted(pseudo)  # in passes
    for index, case_id in enumerate(draws.case_ids):
        sample = draws[index]
        assert float(sample["weight"]) == (pseudo[case_id].weight if case_id in pseudo else 1)
        assert (sample["label"] == 1).all() == (case_id in pseudo)
    next(iter(pseudo.values())).path.write_bytes(b"broken")
    with pytest.raises(DataError, match="is damaged"):
        draws.sample(next(iter(pseudo)))


def test_settings_are_checked() -> None:
    for wrong in ({"side": "left"}, {"window": [2, 1]}, {"n_components": 0}):
        with pytest.raises(ConfigError, match="proxy"):
            IntensityLabel(**wrong)  # type: ignore[arg-type]
