"""Lightning trainers whose precision follows the accelerator."""

from __future__ import annotations

import copy
import logging
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.utilities import rank_zero_only

from alseg.core.counts import counted
from alseg.core.errors import ConfigError
from alseg.system.distributed import USES_GPU, rank, under_torchrun, world_size
from alseg.training.callbacks.checkpoints import AtomicCheckpoints
from alseg.training.callbacks.memory_format import ChannelsLast

BFLOAT16 = "bf16-mixed"  # Lightning's name of it
IN_HALF = {"bf16-true": BFLOAT16, "16-true": "16-mixed"}  # weights as well, and what to use


def check_accelerator(accelerator: str) -> None:
    """Check that the accelerator is there.

    Raises:
        ConfigError: if a GPU is asked for where there is none.
    """
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.accelerator is {accelerator}, but torch {torch.__version__} sees no CUDA "
            "device here; use trainer=auto or trainer=cpu"
        )


def n_devices(trainer: Mapping[str, Any]) -> int:
    """How many devices, and so processes, a run of these trainer settings takes.

    Raises:
        ConfigError: if ``devices`` is of no known form.
    """
    devices = trainer["devices"]
    if not isinstance(devices, int | str | Sequence) or devices == 0:
        raise ConfigError(f"trainer.devices is {devices!r}; it must be a number, a list or auto")
    if devices in ("auto", -1, "-1"):
        wants_gpu = trainer["accelerator"] in USES_GPU
        devices = max(1, torch.cuda.device_count()) if wants_gpu else 1
    elif isinstance(devices, str):
        raise ConfigError(f"trainer.devices is {devices!r}; it must be a number, a list or auto")
    elif not isinstance(devices, int):
        devices = len(devices)
    return int(devices) * int(trainer.get("num_nodes", 1))


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Check that there is a process for each device.

    Raises:
        ConfigError: if there is not.
    """
    devices = n_devices(trainer)
    if devices != world_size():
        raise ConfigError(
            f"trainer.devices and trainer.num_nodes ask for {counted(devices, 'device')}, and "
            f"{counted(world_size(), 'process runs', 'processes run')}; start one for each device: "
            f"torchrun --nproc-per-node {trainer['devices']} -m alseg.train trainer=ddp ..."
        )


def precision_for(accelerator: str) -> str:
    """The precision that suits an accelerator.

    bfloat16 mixed precision on a GPU that computes in it (compute capability 8.0 and later), and
    float32 elsewhere: bfloat16 convolutions on a CPU without matrix units are 10 to 100 times
    slower than float32.
    """
    wants_gpu = accelerator in USES_GPU
    if wants_gpu and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        return BFLOAT16
    return "32-true"


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; false where torch (before 2.10) cannot tell.

    Which precision is faster is a matter of the network too, so it takes a measurement.
    """
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(has for name, has in capabilities.items() if name.endswith("bf16"))


def quiet_lightning() -> None:
    """Silence what Lightning says on every call and no user of alseg can act on."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6 on torch 2.13, harmless
        r".*does not have many workers.*",  # data.num_workers: 0 on purpose on a CPU
        r".*smaller than the logging interval.*",  # short rounds are fine
        r".*but have no `val_dataloader`.*",  # the proxy task has no labels to validate with
        r".*overridden .transfer_batch_to_device. in .LightningModule.*",  # on purpose: metrics
        r".*Checkpoint directory .* exists.*",  # a round that is run again after an interruption
        r".*recommended to use .*sync_dist=True.*",  # alseg logs what is equal on all devices
        r".*Using .DistributedSampler. with the dataloaders.*",  # each case still counts once
        r".*your dataloader is not resumable.*",  # the data module starts at the right batch
        r"The `srun` command is available.*",  # one device a process, whoever starts it
    ):
        warnings.filterwarnings("ignore", message=message)


class OneProcess(LightningEnvironment):
    """One process, whatever Slurm and other launchers have left in the environment."""

    creates_processes_externally = False
    main_address = "127.0.0.1"

    @property
    def main_port(self) -> int:
        """A free port, of this machine only."""
        if self._main_port == -1:
            self._main_port = find_free_network_port()
        return self._main_port

    def local_rank(self) -> int:
        """It is the only one on its machine."""
        return 0

    def node_rank(self) -> int:
        """Its machine is the only one."""
        return 0


def make_trainer(
    *,
    accelerator: str,
    precision: str = "auto",
    channels_last: bool = False,
    callbacks: Sequence[pl.Callback] = (),
    added_callbacks: Sequence[pl.Callback] = (),
    **settings: Any,
) -> pl.Trainer:
    """A ``pytorch_lightning.Trainer``; ``precision="auto"`` follows the accelerator.

    Args:
        accelerator: Lightning's, such as ``auto`` or ``cpu``.
        precision: Lightning's, or ``auto``.
        channels_last: see ``ChannelsLast``.
        callbacks: of the settings (``trainer.callbacks``); each trainer gets copies of its own.
        added_callbacks: those that a training, an evaluation or a scoring brings, after them.
        settings: Lightning's others.

    Raises:
        ConfigError: if the accelerator is not there, or a setting is refused.
    """
    check_accelerator(accelerator)
    if type(channels_last) is not bool:
        raise ConfigError(f"trainer.channels_last is {channels_last!r}; it must be true or false")
    quiet_lightning()
    if precision == "auto":
        precision = precision_for(accelerator)
    if precision in IN_HALF:
        raise ConfigError(
            f"trainer.precision={precision} keeps weights and losses in half precision, in which "
            f"MONAI's transforms and losses do not compute; use {IN_HALF[precision]}"
        )
    # Lightning would guess from variables, and continue from an hpc_ckpt file in its root folder
    environment = TorchElasticEnvironment() if under_torchrun() else OneProcess()
    rank_zero_only.rank = rank()  # type: ignore[attr-defined]
    try:
        return pl.Trainer(
            accelerator=accelerator,
            precision=precision,  # type: ignore[arg-type]
            use_distributed_sampler=False,  # the data module splits its cases itself
            enable_progress_bar=False,  # RoundProgress shows it
            plugins=[AtomicCheckpoints(), environment, *settings.pop("plugins", ())],
            default_root_dir=os.devnull,
            callbacks=[
                *copy.deepcopy(list(callbacks)),
                *added_callbacks,
                *([ChannelsLast()] if channels_last else []),
            ],
            **settings,
        )
    except (ValueError, TypeError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise ConfigError(f"trainer: {error}") from error


def hardware_of(trainer: pl.Trainer) -> str:
    """What a trainer computes on, as far as it changes the last bits of a result."""
    if torch.cuda.is_available() and trainer.accelerator.name() == "cuda":
        device = torch.cuda.get_device_name()
    else:
        device = (
            f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
        )
    return f"{world_size()} x {device}, {trainer.precision}, torch {torch.__version__}"


def workers_for(setting: int | str) -> int:
    """The number of loader processes: the setting, or for ``auto`` what suits the machine.

    Loading keeps a GPU waiting, so there each core except one helps, up to 8; on a CPU it competes
    with training and stays in the main process.

    Raises:
        ConfigError: if the setting is neither ``auto`` nor a number of at least 0.
    """
    if setting == "auto":
        return min(8, max(1, (os.cpu_count() or 1) - 1)) if torch.cuda.is_available() else 0
    if type(setting) is not int or setting < 0:
        raise ConfigError(
            f"data.num_workers is {setting!r}; it must be auto or a whole number of at least 0"
        )
    return setting
