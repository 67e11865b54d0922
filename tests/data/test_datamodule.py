from pathlib import Path

import pytest
import torch
from monai.transforms import RandCropByPosNegLabeld, RandGaussianNoised, SpatialPadd

from alseg.core.units import whole
from alseg.data.cache import VolumeCache
from alseg.data.datamodule import PoolDataModule
from alseg.data.formats.msd import read_msd
from alseg.data.splits import Splits, split_by_fraction
from alseg.oracles.simulated import SimulatedOracle

PATCH = (16, 16, 16)


def make_data(root: Path, folder: Path, *, seed: int = 1, workers: int = 0) -> PoolDataModule:
    task = read_msd(root)
    keys = ["image", "label"]
    return PoolDataModule(
        cache=VolumeCache(task, [], "none", folder),
        splits=split_by_fraction(task.cases, validation=0.2, test=0.2, seed=0),
        augment=[
            SpatialPadd(keys, PATCH),
            RandCropByPosNegLabeld(keys, "label", PATCH, num_samples=2),
            RandGaussianNoised(["image"], prob=0.5),
        ],
        batch_size=2,
        num_workers=workers,
        base_seed=seed,
    )


def start(data: PoolDataModule, splits: Splits, labelled: list[str], number: int = 1) -> None:
    data.reveal(SimulatedOracle(data.cache.task).annotate(whole(labelled)).by_case)
    data.start_round(splits.parts(labelled), number, n_steps=3)


def batches(data: PoolDataModule) -> list[dict]:
    return list(data.train_dataloader())


def test_a_round_has_exactly_its_steps_of_patches(phantoms: Path, tmp_path: Path) -> None:
    data = make_data(phantoms, tmp_path)
    start(data, data.splits, list(data.splits.training[:2]))
    drawn = batches(data)
    assert len(drawn) == 3
    for batch in drawn:  # two volumes with two patches each
        assert batch["image"].shape == batch["label"].shape == (4, 1, *PATCH)
        assert type(batch["image"]) is torch.Tensor


def test_draws_are_a_function_of_seed_and_round_alone(phantoms: Path, tmp_path: Path) -> None:
    labelled = ["phantom_003", "phantom_001", "phantom_004"]

    def images(seed: int, workers: int, number: int, ids: list[str]) -> torch.Tensor:
        data = make_data(phantoms, tmp_path, seed=seed, workers=workers)
        everything = Splits(tuple(data.cache.task.cases), (), ())
        start(data, everything, ids, number)
        return torch.stack([batch["image"] for batch in batches(data)])

    one = images(1, 0, 1, labelled)
    assert torch.equal(one, images(1, 2, 1, labelled))  # loader processes
    assert torch.equal(one, images(1, 0, 1, labelled[::-1]))  # order of acquisition
    assert not torch.equal(one, images(1, 0, 2, labelled))
    assert not torch.equal(one, images(2, 0, 1, labelled))


def test_each_labelled_case_is_drawn_before_one_comes_again(phantoms: Path, tmp_path: Path) -> None:
    data = make_data(phantoms, tmp_path)
    start(data, data.splits, list(data.splits.training[:3]))
    ids = data.train_dataloader().dataset.case_ids  # type: ignore[attr-defined]
    assert sorted(ids[:3]) == sorted(ids[3:]) == sorted(data.splits.training[:3])


def test_hidden_labels_are_out_of_reach(phantoms: Path, tmp_path: Path) -> None:
    data = make_data(phantoms, tmp_path)
    labelled = list(data.splits.training[:2])
    start(data, data.splits, labelled)
    assert set(data.labels) == set(labelled)
    for batch in data.volumes(data.splits.training[2:]):
        assert set(batch) == {"case_id", "image", "labelled"}
        assert not batch["labelled"].any()
    data.start_round(data.splits.parts(data.splits.training[:3]), 1, 3)
    with pytest.raises(KeyError):  # the third was never revealed
        batches(data)


def test_prepare_fills_the_cache_once_and_counts(phantoms: Path, tmp_path: Path) -> None:
    data = make_data(phantoms, tmp_path)
    ids = list(data.cache.task.cases)
    data.reveal(SimulatedOracle(data.cache.task).annotate(whole(ids[:3])).by_case)
    data.prepare(ids)
    assert data.take_preprocessing()[1] == len(ids)
    data.prepare(ids)
    assert data.take_preprocessing() == (pytest.approx(0, abs=0.1), 0)
    assert len(list(tmp_path.glob("label-*.pt"))) == 3
    assert len(list(tmp_path.glob("image-*.pt"))) == len(ids)
