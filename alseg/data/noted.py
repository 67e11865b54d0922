"""Notes on what each loader process is reading, for the day on which one of them dies."""

from __future__ import annotations

import os
import re
from collections.abc import Sized
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset, get_worker_info

from alseg.errors import DataError

_DEATH = (
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (is killed by signal: [^.]+|exited unexpectedly)"
)


class CaseSet(Sized, Protocol):
    """A data set that knows which case each of its samples comes from."""

    case_ids: list[str]

    def __getitem__(self, index: int) -> Any:
        """A sample."""


class Noted(Dataset):
    """A data set whose loader processes note which sample they are about to read.

    Args:
        dataset: the data set.
        num_workers: loader processes.
    """

    def __init__(self, dataset: CaseSet, num_workers: int) -> None:
        self.dataset = dataset
        # [workers, 2]: process id and sample, in memory that outlives a process
        self.notes = torch.full((num_workers, 2), -1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        if worker is not None:
            self.notes[worker.id] = torch.tensor([os.getpid(), index])
        return self.dataset[index]

    def read_by(self, process_id: int) -> str | None:
        """The case that a loader process was reading last."""
        for pid, index in self.notes.tolist():
            if pid == process_id:
                return self.dataset.case_ids[index]
        return None


def loader_death(error: BaseException, noted: list[Noted]) -> DataError | None:
    """What torch's error on a dead loader process means; None if the error is another one."""
    found = re.search(_DEATH, str(error))
    if found is None:
        return None
    how = found[2].replace("is killed by signal: ", "was killed by signal ")
    cases = {s.read_by(int(pid)) for s in noted for pid in found[1].split(",")} - {None}
    names = ", ".join(sorted(str(case) for case in cases)) or "no case yet"
    return DataError(
        f"a loader process {how} while it was reading {names}; if it ran out of memory, lower "
        "data.num_workers or data.batch_size"
    )
