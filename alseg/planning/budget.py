"""The device that a run computes on: which numbers hold there, and how much memory it has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alseg.planning.numbers import CPU, GPU, Numbers
from alseg.system.distributed import USES_GPU

# what a container may take, of cgroups 2 and 1
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Budget:
    """What training may take.

    Attributes:
        device: in words.
        memory_bytes: of the device, all of it: what is free at the moment would make the plan of
            one data set another one from day to day.
        numbers: of the rules.
    """

    device: str
    memory_bytes: int
    numbers: Numbers

    @property
    def usable_bytes(self) -> float:
        """The share of the memory that training may take."""
        return self.numbers.memory_share * self.memory_bytes


def budget_of(accelerator: str, changes: Mapping[str, Any]) -> Budget:
    """The budget of the device that an accelerator stands for, here and now.

    Args:
        accelerator: of the trainer, such as ``auto`` or ``cpu``.
        changes: of the device's numbers.

    Raises:
        ConfigError: if a change names no number.
    """
    if accelerator in USES_GPU and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Budget(properties.name, properties.total_memory, GPU.with_changes(changes))
    return Budget("the CPU", main_memory(), CPU.with_changes(changes))


def main_memory() -> int:
    """Bytes of main memory that this process may take: the machine's, or its container's."""
    amounts = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _LIMITS):
        text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        amounts += [int(text)] if text.isdigit() and int(text) > 0 else []
    return min(amounts)
