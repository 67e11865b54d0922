"""Checkpoints: a training's best weights, and what it takes to continue in the middle of one."""

from __future__ import annotations

import logging
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from alseg.system.distributed import gathered, rank
from alseg.system.files import checksum_of, previous, read_tensors, write_tensors
from alseg.system.interruption import Interrupted, interruption

log = logging.getLogger(__name__)


class AtomicCheckpoints(CheckpointIO):
    """Writes Lightning's checkpoints atomically, with a checksum; reads them with weights only.

    Lightning's own writer goes through a file in the system's temporary folder, which on another
    disk is copied and not renamed, and does not wait for the disk.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_tensors(Path(path), checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU."""
        return dict(read_tensors(Path(path)))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class BestWeights(ModelCheckpoint):
    """Keeps the weights of the best validation Dice, in a run folder that may move.

    Without a ``monitor``, those at the end.

    Attributes:
        checksum: of the file with the weights, as this training has left it; empty before.
    """

    checksum = ""

    @property
    def path(self) -> Path:
        """Where the weights are."""
        return Path(str(self.dirpath), f"{self.filename}.ckpt")

    @property
    def is_ours(self) -> bool:
        """Whether the file is the one that this training has left."""
        return checksum_of(self.path) == self.checksum

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Whether these weights are the best so far; the latest where no Dice has been a number."""
        score = self.best_model_score
        if current is not None and score is not None and not torch.isfinite(score):
            return True
        return super().check_monitor_top_k(trainer, current)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.checksum = checksum_of(self.path)

    def state_dict(self) -> dict[str, Any]:
        """The best score and the checksum of its weights, for the checkpoint."""
        return super().state_dict() | {"checksum": self.checksum}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's best score, with the paths as they are now."""
        self.checksum = state_dict["checksum"]
        before, now = str(state_dict["dirpath"]), str(self.dirpath)

        def moved(path: str) -> str:
            return path.replace(before, now, 1)

        state = state_dict | {
            name: moved(state_dict[name])
            for name in ("dirpath", "best_model_path", "kth_best_model_path")
        }
        state["best_k_models"] = {moved(p): s for p, s in state_dict["best_k_models"].items()}
        super().load_state_dict(state)


class TrainingCheckpoint(pl.Callback):
    """Saves a training now and then, so that it continues where it was when its process has gone.

    A checkpoint is written before a step, when all of the step before is done, its validation
    included. Lightning's checkpoint has the weights, the optimiser, the schedule and the position;
    added are the random states. They are put back before the first step that is repeated, for
    whatever happens on the way there (loaders draw their seeds) has happened before.

    Args:
        path: of the checkpoint; the one before is kept beside it until the next.
        every_n_steps: between two checkpoints; None for none except at an interruption.

    Attributes:
        seed: of the training, by which its checkpoints are known.
        stepped: whether it has come to a step in this process.
    """

    def __init__(self, path: Path, every_n_steps: int | None) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.seed, self.stepped = 0, False
        self._random_states: list[dict[str, Any]] | None = None  # to put back, one a process
        self._seconds_before = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the training has taken, in all the processes that continued from one another."""
        return self._seconds_before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """The random states, the time so far and whose they are, for the checkpoint."""
        return {
            "random_states": gathered(random_state()),
            "seconds": self.seconds,
            "seed": self.seed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        self._random_states = state_dict["random_states"]
        self._seconds_before = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Receive signals: Lightning's own handler of SIGTERM saves nothing."""
        interruption.reinstall_handlers()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save before the step where it is due; end where a signal asks for it."""
        step = trainer.global_step
        resumed = self._random_states is not None
        if self._random_states is not None:
            restore_random_state(self._random_states)
            self._random_states = None
            # Lightning counts one step too many, for loggers, when a checkpoint precedes a step
            trainer.fit_loop.epoch_loop._batches_that_stepped = step
        self.stepped = True
        asked = next((number for number in gathered(interruption.requested) if number), None)
        is_due = self.every_n_steps is not None and step % self.every_n_steps == 0
        if step > 0 and not resumed and (is_due or asked):
            self._save(trainer)
        if asked:
            raise Interrupted(asked)

    def delete(self) -> None:
        """Delete the checkpoints of a training that is done."""
        if rank() == 0:
            self.path.unlink(missing_ok=True)
            previous(self.path).unlink(missing_ok=True)

    def _save(self, trainer: pl.Trainer) -> None:
        if rank() == 0 and self.path.is_file():
            os.replace(self.path, previous(self.path))
        for logger in trainer.loggers:
            logger.save()  # no later process will repeat what led to this checkpoint
        trainer.save_checkpoint(self.path, weights_only=False)


def random_state() -> dict[str, Any]:
    """The states of this process's global generators: Python's, NumPy's, torch's, its GPU's."""
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)  # type: ignore[assignment]
    key = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))  # a tensor needs no pickle
    return {
        "python": random.getstate(),
        "numpy": numpy_state | {"state": numpy_state["state"] | {"key": key}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(states: list[dict[str, Any]]) -> None:
    """Put back this process's state of those that ``random_state`` gave in all processes.

    On another number of processes the states are not put back: which masks a dropout layer draws is
    then another matter anyway.
    """
    if len(states) != len(gathered(None)):
        log.info("resumed on another number of devices: not bit-identical to an uninterrupted run")
        return
    state = states[rank()]
    random.setstate(state["python"])
    key = state["numpy"]["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(state["numpy"] | {"state": state["numpy"]["state"] | {"key": key}})
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
