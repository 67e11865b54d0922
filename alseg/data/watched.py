"""Notes on what each loader process is reading, in case one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import re
import traceback
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset, get_worker_info

from alseg.core.errors import DataError, StorageError

_DEATH = (
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (is killed by signal: [^.]+|exited unexpectedly)"
)
_SHARED_MEMORY = "shared memory"
SECONDS_TO_END = 10.0  # how long a process may take to be gone after its connection broke


class CaseSet(Sized, Protocol):
    """A data set that knows which case each of its samples comes from."""

    case_ids: list[str]

    def __getitem__(self, index: int) -> Any:
        """A sample."""


class WatchedDataset(Dataset):
    """A data set whose loader processes note which sample they are reading.

    Args:
        dataset: the data set.
        num_workers: loader processes.
    """

    def __init__(self, dataset: CaseSet, num_workers: int) -> None:
        self.dataset = dataset
        self.case_ids = dataset.case_ids
        # [workers, 3]: process, sample, whether it is being read; outlives the process
        self.notes = torch.full((num_workers, 3), -1, dtype=torch.int64)
        if num_workers > 0:
            self.notes.share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        if worker is None:
            return self.dataset[index]
        self.notes[worker.id] = torch.tensor([os.getpid(), index, True])
        sample = self.dataset[index]
        self.notes[worker.id, 2] = False
        return sample

    def readings(self) -> list[tuple[int, str, bool]]:
        """Each loader process, the case that it read last, and whether it had not finished it."""
        return [
            (process, self.case_ids[index], reading == 1)
            for process, index, reading in self.notes.tolist()
            if process > 0
        ]


def _has_ended(process_id: int) -> bool:
    """Whether a child has ended; its connection breaks a moment before it is gone."""
    for child in multiprocessing.active_children():
        if child.pid == process_id:
            child.join(SECONDS_TO_END)
            return child.exitcode is not None
    return True


def lacks_shared_memory(error: BaseException) -> bool:
    """Whether an error says that loader processes cannot hand over what they have read."""
    if isinstance(error, OSError):  # by the locks of multiprocessing, which lie there too
        frames = traceback.extract_tb(error.__traceback__)
        return any(Path(frame.filename).name == "synchronize.py" for frame in frames)
    return _SHARED_MEMORY in str(error)


def dead_worker_error(
    error: BaseException, datasets: Sequence[WatchedDataset]
) -> DataError | StorageError | None:
    """What an error says of a dead loader process; None if it is another error.

    torch reports the death, unless the main process was just fetching a sample from the process
    that died: then the connection breaks first, and torch's signal handler may speak up while we
    wait for the process to end.
    """
    if lacks_shared_memory(error):
        return StorageError(
            "the loader processes need more shared memory (/dev/shm) than there is: set "
            "data.num_workers=0, or give a container more, as docker run --shm-size=8g does"
        )
    readings = [reading for dataset in datasets for reading in dataset.readings()]
    if found := re.search(_DEATH, str(error)):
        dead = {int(process) for process in found[1].split(",")}
        cases = {case for process, case, _ in readings if process in dead}
        end = found[2].replace("is killed by signal: ", "was killed by signal ")
    elif isinstance(error, (ConnectionError, EOFError, FileNotFoundError)):
        try:
            cases = {case for process, case, reading in readings if reading and _has_ended(process)}
        except RuntimeError as torch_error:
            return dead_worker_error(torch_error, datasets)
        end = "died"
        if not cases:
            return None
    else:
        return None
    return DataError(
        f"a loader process {end} while it was reading {', '.join(sorted(cases)) or 'no case yet'}; "
        "if it ran out of memory, lower data.num_workers or data.batch_size"
    )
