"""Loaders for one round: training draws, fixed evaluation volumes, the pool to score."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from cachetools import LRUCache
from monai.data import get_track_meta, set_track_meta
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from alseg.core.errors import ConfigError, DataError
from alseg.core.seeding import seed_for
from alseg.data.annotated_crops import collated, for_partial_labels
from alseg.data.annotation import Annotation, annotated_classes
from alseg.data.cache import VolumeCache, reason_of
from alseg.data.splits import Parts, Splits
from alseg.data.watched import CaseSet, WatchedDataset, dead_worker_error
from alseg.system.console import track
from alseg.system.distributed import rank, world_size

log = logging.getLogger(__name__)

_REMEMBERED = 2**26  # bytes of volumes that the draws of a training keep at hand
GEOMETRY = ("affine", "source_affine", "source_shape")  # of an image: where its grids lie


class TrainingDraws(Dataset):
    """The training samples of a round, in the order in which they are used.

    Draw i is a function of (seed, round, i): its case comes from a shuffled pass over the given
    cases (one that is given twice comes twice a pass), and its augmentation has a seed of its own.
    So the number of workers changes nothing, and a round can start again at any draw.
    """

    def __init__(
        self,
        cache: VolumeCache,
        labels: Mapping[str, Annotation],
        case_ids: Sequence[str],
        augment: Sequence[Callable[[Any], Any]],
        n_draws: int,
        base_seed: int,
        round_number: int,
    ) -> None:
        self.cache = cache
        self.labels = labels
        self.augment = Compose(for_partial_labels(augment))
        self.base_seed = base_seed
        self.round_number = round_number
        rng = np.random.default_rng(seed_for(base_seed, round_number, "batches"))
        # Sorted first: the order in which cases were acquired must not steer training.
        ids = sorted(case_ids)
        n_passes = -(-n_draws // len(ids))
        order = np.concatenate([rng.permutation(len(ids)) for _ in range(n_passes)])
        self.case_ids = [ids[i] for i in order[:n_draws]]
        self._samples: LRUCache[str, dict[str, Tensor]] = LRUCache(_REMEMBERED, _n_bytes)

    def __len__(self) -> int:
        return len(self.case_ids)

    def sample(self, case_id: str) -> dict[str, Tensor]:
        """The whole volume before augmentation: ``image`` [channels, D, H, W], ``label``, and
        ``annotated_classes`` [C] where some case lacks classes."""
        return {
            "image": self.cache.image(case_id)["image"],
            "label": annotated_label(self.cache, case_id, self.labels[case_id]),
            **annotated_classes(self.cache.task, case_id),
        }

    def __getitem__(self, index: int) -> Any:
        """``image`` [channels, d, h, w], ``label`` [1, d, h, w], ``case_id``; or a list of such."""
        case_id = self.case_ids[index]
        sample: dict[str, Any] = {"case_id": case_id, **self._drawn(case_id)}
        self.augment.set_random_state(
            seed_for(self.base_seed, self.round_number, f"augment/{index}", case_id)
        )
        try:
            with without_metadata():
                return self.augment(sample)
        except Exception as error:  # MONAI's and anybody's transforms let all kinds through
            raise DataError(
                f"data.augment failed on the case {case_id}: {reason_of(error)}"
            ) from error

    def _drawn(self, case_id: str) -> dict[str, Tensor]:
        """``sample``, of small volumes as it was at the first draw: to look for it takes longer."""
        sample = self._samples.get(case_id)
        if sample is None:
            sample = self.sample(case_id)
            if _n_bytes(sample) > _REMEMBERED:
                return sample
            self._samples[case_id] = sample
        return {name: tensor.clone() for name, tensor in sample.items()}  # transforms change it


def _n_bytes(sample: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in sample.values())


@contextmanager
def without_metadata() -> Iterator[None]:
    """Let MONAI's transforms work on plain tensors: half the time, and nobody reads the rest."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


class RemainingDraws(Sampler[int]):
    """This device's share of a round's draws from ``first`` on.

    With N devices, device r takes the draws r, r + N, ...: together, the same batches. The length
    is that of the whole round, from which Lightning counts the steps.
    """

    def __init__(self, n_draws: int, first: int) -> None:
        self.n_draws, self.first = n_draws, first

    def __len__(self) -> int:
        return self.n_draws // world_size()

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first + rank(), self.n_draws, world_size()))


class WholeVolumes(Dataset):
    """Whole preprocessed volumes with their labels, for evaluation.

    Args:
        cache: the preprocessed volumes.
        case_ids: the cases.
        labels: what has been revealed of their labels.
        in_source: also serve the label as it is in its file, ``source_label`` [1, D, H, W].
    """

    def __init__(
        self,
        cache: VolumeCache,
        case_ids: Sequence[str],
        labels: Mapping[str, Annotation],
        *,
        in_source: bool = False,
    ) -> None:
        self.cache = cache
        self.case_ids = list(case_ids)
        self.labels = labels
        self.in_source = in_source

    def __len__(self) -> int:
        return len(self.case_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case_id = self.case_ids[index]
        entry, annotation = self.cache.image(case_id), self.labels[case_id]
        sample: dict[str, Any] = {
            "case_id": case_id,
            "image": entry["image"],
            "label": annotated_label(self.cache, case_id, annotation),
            "geometry": {name: entry[name] for name in GEOMETRY},
            **annotated_classes(self.cache.task, case_id),
        }
        if self.in_source:
            source = self.cache.source_label(case_id, annotation.path, annotation.regions)
            sample["source_label"] = source
        return sample


class PoolVolumes(Dataset):
    """The volumes that a strategy looks at: the candidates and, for reference, labelled ones.

    Args:
        cache: the preprocessed volumes.
        candidates: the cases that a query may choose.
        reference: labelled cases, flagged so; their labels are not served.
        hidden_labels: label files of the candidates, for a strategy that reads labels; else empty.
    """

    def __init__(
        self,
        cache: VolumeCache,
        candidates: Sequence[str],
        reference: Sequence[str],
        hidden_labels: Mapping[str, Path],
    ) -> None:
        self.cache = cache
        self.case_ids = [*candidates, *reference]
        self.n_candidates = len(candidates)
        self.hidden_labels = hidden_labels

    def __len__(self) -> int:
        return len(self.case_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case_id = self.case_ids[index]
        sample: dict[str, Any] = {
            "case_id": case_id,
            "image": self.cache.image(case_id)["image"],
            "labelled": index >= self.n_candidates,
        }
        if case_id in self.hidden_labels:
            sample["hidden_label"] = self.cache.label(case_id, self.hidden_labels[case_id])
        return sample


class PoolDataModule(pl.LightningDataModule):
    """Serves the loaders of the current round.

    It knows the labels that were revealed and no others.

    Args:
        cache: the preprocessed volumes.
        splits: says which cases train, validate and test.
        augment: random transforms on ``image`` and ``label``, ending in patches of one size.
        batch_size: volumes a step, over all devices; times the crops a volume, where ``augment``
            makes several.
        num_workers: loader processes; 0 loads in the main process.
        base_seed: the run's seed.

    Raises:
        ConfigError: if a batch cannot be shared equally among the devices.
    """

    def __init__(
        self,
        *,
        cache: VolumeCache,
        splits: Splits,
        augment: Sequence[Callable[[Any], Any]],
        batch_size: int,
        num_workers: int,
        base_seed: int,
    ) -> None:
        super().__init__()
        self.cache = cache
        self.splits = splits
        self.augment = augment
        self.batch_size = batch_size
        if batch_size % world_size():
            raise ConfigError(
                f"data.batch_size is {batch_size}, the volumes of one step over all devices; it "
                f"must be a multiple of the {world_size()} devices"
            )
        self.num_workers = num_workers
        self.base_seed = base_seed
        self.labels: dict[str, Annotation] = {}
        self._round: tuple[Parts, int, int] | None = None
        self._draw_seed = base_seed
        self._first_step = 0
        self._prepared: set[tuple[str, Annotation | None]] = set()  # by case id
        self._preprocessing = (0.0, 0)  # seconds, images
        self._served: list[
            WatchedDataset
        ] = []  # the latest, of which loader processes may be alive

    def reveal(self, labels: Mapping[str, Path | Annotation]) -> None:
        """Take in what the oracle has revealed of labels; a path stands for a whole label.

        What is revealed of a case replaces what was revealed of it before.
        """
        self.labels |= {
            case_id: label if isinstance(label, Annotation) else Annotation(label)
            for case_id, label in labels.items()
        }

    def label(self, case_id: str) -> Tensor:
        """What has been revealed of a case's label, on the preprocessed grid: [1, D, H, W]."""
        return annotated_label(self.cache, case_id, self.labels[case_id])

    def start_round(
        self, parts: Parts, round_number: int, n_steps: int, draw_seed: int | None = None
    ) -> None:
        """Serve the given round from now on.

        Args:
            parts: the annotated cases that it trains and validates with.
            round_number: the round.
            n_steps: optimiser steps.
            draw_seed: of the training draws, where it is not the run's: for ensemble members.
        """
        self._round = (parts, round_number, n_steps)
        self._draw_seed = self.base_seed if draw_seed is None else draw_seed
        self._first_step = 0

    def state_dict(self) -> dict[str, int]:
        """The position in the round's training, for Lightning's checkpoints."""
        return {"step": self.trainer.global_step if self.trainer else 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Serve the training batches of the round from this position on."""
        self._first_step = state_dict["step"]

    def prepare(self, case_ids: Iterable[str]) -> None:
        """Fill the cache, with a progress bar: images of all cases, labels where revealed.

        Raises:
            DataError: naming the first file that cannot be used.
        """

        def fill(case_id: str) -> None:
            self.cache.image(case_id)
            if case_id in self.labels:
                self.label(case_id)

        wanted = {(case_id, self.labels.get(case_id)) for case_id in case_ids}
        ids = sorted(case_id for case_id, _ in wanted - self._prepared)
        before, started = len(self.cache.preprocessed), time.monotonic()
        # Threads: reading, resampling and compression all release the interpreter lock.
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as threads:
            filled = threads.map(fill, ids)
            try:
                for _ in track(filled, "preprocessing", "volume", len(ids), shown=rank() == 0):
                    pass
            except BaseException:  # a signal, too, waits for what is being read and no more
                threads.shutdown(cancel_futures=True)
                raise
        self._prepared |= wanted
        seconds = time.monotonic() - started
        n_computed = len(self.cache.preprocessed) - before
        self.continue_preprocessing(seconds, n_computed)
        if n_computed:
            log.info(
                f"preprocessed {n_computed} volumes in {seconds:.1f} s; {len(ids) - n_computed} "
                f"were in the cache {self.cache.folder}"
            )

    def foreground_voxels(self, case_ids: Iterable[str]) -> int:
        """Foreground voxels in the revealed labels of the cases, on the preprocessed grid."""
        return sum(int((self.label(case_id) > 0).sum()) for case_id in case_ids)

    def foreground_classes(self, case_ids: Sequence[str]) -> np.ndarray:
        """Whether each foreground class is in what has been revealed of cases, [n, C - 1]."""
        classes = torch.arange(1, len(self.cache.task.classes))
        held = [torch.isin(classes, self.label(case_id)).numpy() for case_id in case_ids]
        return np.array(held, dtype=bool).reshape(len(held), len(classes))

    def check_foreground(self) -> None:
        """Check that the fixed validation and test labels can measure something.

        Raises:
            DataError: if those of a part hold no foreground at all: its Dice would be undefined.
        """
        for name in ("validation", "test"):
            ids = getattr(self.splits, name)
            if ids and not self.holds_foreground(ids):
                raise DataError(
                    f"no label of the {name} part ({', '.join(ids[:3])}{', ...' * (len(ids) > 3)}) "
                    "holds foreground, so its Dice is undefined"
                )

    def holds_foreground(self, case_ids: Iterable[str]) -> bool:
        """Whether any revealed label of the cases holds foreground."""
        return any(bool((self.label(i) > 0).any()) for i in case_ids)

    def continue_preprocessing(self, seconds: float, n_computed: int) -> None:
        """Count what an earlier process has preprocessed for the round that it goes on with."""
        before = self._preprocessing
        self._preprocessing = before[0] + seconds, before[1] + n_computed

    def take_preprocessing(self) -> tuple[float, int]:
        """Seconds of preprocessing and number of images computed since the last call."""
        taken, self._preprocessing = self._preprocessing, (0.0, 0)
        return taken

    def train_dataloader(self) -> DataLoader:
        """Exactly the batches of one round."""
        parts, round_number, n_steps = self._current_round()
        draws = TrainingDraws(
            self.cache,
            self.labels,
            parts.training,
            self.augment,
            n_steps * self.batch_size,
            self._draw_seed,
            round_number,
        )
        return self.batches(draws, self._first_step)

    def batches(self, draws: TrainingDraws, first_step: int = 0) -> DataLoader:
        """The batches of some training samples, from a step on."""
        return DataLoader(
            self._watched(draws),
            batch_size=self.batch_size // world_size(),
            sampler=RemainingDraws(len(draws), first_step * self.batch_size),
            num_workers=self.num_workers,
            collate_fn=collated,
        )

    def val_dataloader(self) -> DataLoader:
        """The round's validation volumes, one at a time."""
        parts, _, _ = self._current_round()
        return self._one_by_one(WholeVolumes(self.cache, parts.validation, self.labels))

    def evaluation_volumes(self, case_ids: Sequence[str], *, in_source: bool) -> DataLoader:
        """Annotated volumes, one at a time; see ``WholeVolumes``."""
        return self._one_by_one(
            WholeVolumes(self.cache, case_ids, self.labels, in_source=in_source)
        )

    def volumes(
        self,
        case_ids: Sequence[str],
        reference: Sequence[str] = (),
        hidden_labels: Mapping[str, Path] | None = None,
    ) -> DataLoader:
        """The images of some cases, one at a time; see ``PoolVolumes``."""
        return self._one_by_one(PoolVolumes(self.cache, case_ids, reference, hidden_labels or {}))

    def _one_by_one(self, volumes: CaseSet) -> DataLoader:
        return DataLoader(
            self._watched(volumes),
            batch_size=1,
            sampler=_share(volumes),
            num_workers=self.num_workers,
        )

    def _watched(self, dataset: CaseSet) -> WatchedDataset:
        self._served = [*self._served[-3:], WatchedDataset(dataset, self.num_workers)]
        return self._served[-1]

    @contextmanager
    def report_dead_workers(self) -> Iterator[None]:
        """Say which case a loader process was reading when it died.

        Not Lightning's hook ``on_exception``: torch's signal handler may raise before it is called.

        Raises:
            DataError: if that is what has happened.
            StorageError: if the processes have no shared memory to hand over what they read.
        """
        try:
            yield
        except Exception as error:
            if death := dead_worker_error(error, self._served):
                raise death from error
            raise

    def _current_round(self) -> tuple[Parts, int, int]:
        if self._round is None:
            raise RuntimeError("start_round has not been called")
        return self._round


def annotated_label(cache: VolumeCache, case_id: str, annotation: Annotation) -> Tensor:
    """What was annotated of a case's label, on the preprocessed grid: [1, D, H, W]."""
    return cache.label(case_id, annotation.path, annotation.regions)


def _share(dataset: Any) -> DistributedSampler | None:
    """This device's share of a data set; uneven shares are filled up by repeating the first cases.

    Lightning's sampler for predictions repeats none, but a device without any case would then leave
    the others waiting. Whoever collects results by case id counts a repeated case once.
    """
    if world_size() == 1:
        return None
    return DistributedSampler(dataset, world_size(), rank(), shuffle=False)
