"""Several processes under torchrun: who this one is, and how they agree.

Every process runs the whole program; only the first one (rank 0) writes files and tracks the run.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from alseg.core.errors import ConfigError

USES_GPU = ("auto", "gpu", "cuda")  # accelerators of a trainer that take a GPU where there is one


def rank() -> int:
    """The number of this process, 0 for the first or only one."""
    return int(os.environ.get("RANK", "0")) if under_torchrun() else 0


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1")) if under_torchrun() else 1


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def process_group(accelerator: str) -> Iterator[None]:
    """Join the other processes; Lightning then uses this group.

    From the start and not in the first ``fit``: the processes agree on the run folder before.

    Args:
        accelerator: of the trainer: with ``cpu``, a machine's GPUs are not touched.

    Raises:
        ConfigError: if this machine has fewer GPUs than processes.
    """
    if world_size() == 1:
        yield
        return
    backend = "gloo"  # the objects that alseg exchanges lie on the CPU
    if accelerator in USES_GPU and torch.cuda.is_available():
        device = int(os.environ["LOCAL_RANK"])
        if device >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun has started more processes on this machine than it has GPUs "
                f"({torch.cuda.device_count()}): start one for each GPU with --nproc-per-node "
                f"{torch.cuda.device_count()}, or use trainer.accelerator=cpu"
            )
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    # A day: the others wait while the first draws pictures, uploads files or fills the cache.
    dist.init_process_group(backend, timeout=datetime.timedelta(days=1))
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def from_first(value: Any) -> Any:
    """The first process's value, in all processes."""
    if not _joined():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: Any) -> list[Any]:
    """All processes' values in the order of their ranks, in all processes."""
    if not _joined():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    gathered(None)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
