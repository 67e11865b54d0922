"""New scans one after another through the network of a run: what predicting and scoring share.

Of a scan nothing is kept in memory except the path of its files.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader, Dataset

from alseg.config.checks import check_transforms
from alseg.config.composition import instantiate
from alseg.core.counts import counted
from alseg.core.errors import AlsegError, ConfigError, DataError, StorageError, check_text
from alseg.data.archive import Archive
from alseg.data.cache import VolumeCache
from alseg.data.headers import check_image_headers
from alseg.data.task import Task
from alseg.data.watched import WatchedDataset, dead_worker_error
from alseg.engine.trained_run import TrainedRun
from alseg.run.folder import CONFIG_FILE
from alseg.system.console import Meter, say
from alseg.system.distributed import world_size
from alseg.system.files import is_within
from alseg.system.interruption import Interrupted, interruption
from alseg.training.trainers import check_accelerator

log = logging.getLogger(__name__)

MOST_WORKERS = 2  # loader processes: each holds two volumes


def trainer_of(config: DictConfig) -> pl.Trainer:
    """The Lightning trainer, of one device."""
    if config.trainer.devices != 1 or world_size() != 1:
        raise ConfigError(
            f"trainer.devices is {config.trainer.devices}, in {counted(world_size(), 'process')}; "
            "a prediction takes one device: start one for each, with parts of the images and "
            "outputs of their own"
        )
    check_accelerator(config.trainer.accelerator)
    trainer: pl.Trainer = instantiate(config.trainer)(logger=False, enable_checkpointing=False)
    return trainer


def folders_of(config: DictConfig) -> tuple[Path, Path]:
    """The folders of the scans and of what is made of them."""
    for name in ("images", "output"):
        check_text(name, config[name])
    images, output = (Path(config[name]).expanduser() for name in ("images", "output"))
    if not images.is_dir():
        raise DataError(f"images is {images}, which is not a folder")
    if is_within(output, images):
        raise ConfigError(
            f"output is {output}, in the folder of the images, where its files would be taken "
            "for scans; give another one"
        )
    if (output / CONFIG_FILE).exists():
        raise ConfigError(f"output is {output}, which is the folder of a run; give another one")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output is {output}, which is not a folder")
    return images, output


@dataclass(frozen=True)
class ScanJob:
    """Which scans a network looks at.

    Attributes:
        run: gives the network.
        archive: the scans.
        output: the folder of what is made of them.
    """

    run: TrainedRun
    archive: Archive
    output: Path

    @cached_property
    def task(self) -> Task:
        """The scans, with the channels and classes of the run."""
        return replace(self.run.task, root=self.archive.folder, cases=self.archive)

    @cached_property
    def cache(self) -> VolumeCache:
        """Preprocesses the scans as the run did; nothing is kept."""
        preprocess = self.run.config.data.preprocess
        transforms = instantiate(preprocess)
        check_transforms("data.preprocess", transforms)
        text = OmegaConf.to_yaml(preprocess, resolve=True)
        return VolumeCache(self.task, transforms, text, self.output)

    @property
    def network_hash(self) -> str:
        """Changes whenever the network or what is asked of it does."""
        raise NotImplementedError

    def made_of(self, case_id: str) -> str:
        """Changes whenever the network, what is asked of it, or the scan does."""
        image = self.cache.key(self.task.cases[case_id].images)
        return hashlib.sha256(f"{self.network_hash} {image}".encode()).hexdigest()[:16]


class Scans(Dataset):
    """Preprocessed scans; one that cannot be used gives the reason in its place."""

    def __init__(self, cache: VolumeCache, archive: Archive, case_ids: list[str]) -> None:
        self.cache = cache
        self.archive = archive
        self.case_ids = case_ids

    def __len__(self) -> int:
        return len(self.case_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        started, case_id = time.monotonic(), self.case_ids[index]
        case = self.archive[case_id]
        try:
            self.archive.check(case_id)
            findings = check_image_headers(self.cache.task, case).findings
            entry = self.cache.preprocess(case)
        except (DataError, OSError) as error:
            return {"case_id": case_id, "refused": str(error)}
        return {
            "case_id": case_id,
            "entry": entry,
            "findings": "; ".join(finding.message for finding in findings),
            "seconds": time.monotonic() - started,
        }


class ScanModule(pl.LightningModule):
    """Looks at one scan after another with the network of a run; one without use is noted.

    Args:
        job: which scans.
        meter: shows how far it is.
    """

    def __init__(self, job: ScanJob, meter: Meter) -> None:
        super().__init__()
        self.job = job
        self.meter = meter
        self.network = job.run.network

    def look_at(self, case_id: str, batch: Mapping[str, Any]) -> None:
        """Look at one scan, as ``Scans`` gives it, and note what came of it."""
        raise NotImplementedError

    def note_refused(self, case_id: str, message: str) -> None:
        """Note why a scan could not be used."""
        raise NotImplementedError

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Move the image; affines stay where they are, in the precision that they have."""
        if "entry" in batch:
            entry = batch["entry"]
            batch["entry"] = entry | {"image": entry["image"].to(device)}
        return batch

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> str:
        """Look at one scan, or note why that is not possible; returns its case id."""
        case_id: str = batch["case_id"]
        try:
            if "refused" in batch:
                raise DataError(batch["refused"])
            self.look_at(case_id, batch)
        except StorageError:
            raise
        except (AlsegError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise  # torch has no class of its own for a CPU that lacks memory
            self._refuse(case_id, error)
        self.meter.update(self.meter.done + 1, lambda: case_id)
        return case_id

    def _refuse(self, case_id: str, error: BaseException) -> None:
        message = str(error)
        if not isinstance(error, AlsegError):
            message = f"{self.job.task.cases[case_id].images[0]} does not fit into memory: {error}"
        self.note_refused(case_id, " ".join(message.split()))
        log.warning(f"{case_id} is left out: {message}")


def run_trainer(
    trainer: pl.Trainer, module: ScanModule, waiting: list[str], num_workers: int
) -> None:
    """Look at the scans that wait; at a signal, say what is left."""
    num_workers = min(num_workers, MOST_WORKERS, len(waiting))
    scans = WatchedDataset(Scans(module.job.cache, module.job.archive, waiting), num_workers)
    loader = DataLoader(scans, batch_size=None, num_workers=num_workers)
    try:
        with interruption.handled(), module.meter as meter:
            trainer.predict(module, loader, return_predictions=False)
    except Interrupted:
        n_left = meter.total - meter.done
        say(f"the same command continues with what is left, {counted(n_left, 'scan')}")
        raise
    except Exception as error:
        if dead := dead_worker_error(error, [scans]):
            raise dead from error
        raise
