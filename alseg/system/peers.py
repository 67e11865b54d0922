"""Processes under torchrun that end when another one is gone, instead of waiting for it for a day.

A process that dies closes its connections, and the next exchange with it fails at once. One whose
host or network is gone closes nothing: so each process counts up a number in torchrun's store, and
looks whether those of the others grow.

Rejected: a short timeout of the process group. The others wait for long, and rightly, while the
first one draws pictures or fills the cache.
"""

from __future__ import annotations

import datetime
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

from alseg.system.distributed import rank, world_size

BEAT_S = 5.0  # between two counts
SILENT_S = 45.0  # without one, a process counts as gone
DONE = 10**9  # added to the count of a process that needs the others no more


def is_loss_of_contact(error: RuntimeError) -> bool:
    """Whether an error of an exchange says that another process is gone."""
    if world_size() == 1:
        return False
    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or "gloo" in str(error)


@contextmanager
def watched_peers(lost: Callable[[str], None]) -> Iterator[None]:
    """Watch the other processes within the block.

    Args:
        lost: called in a thread, with what is gone in words; this process may be waiting for it.
    """
    if world_size() == 1 or not dist.is_initialized():
        yield
        return
    peers = _Peers()
    ended = threading.Event()
    thread = threading.Thread(target=peers.watch, args=(ended, lost), daemon=True)
    thread.start()
    try:
        yield
        peers.store.add(peers.key(rank()), DONE)
    finally:
        ended.set()
        thread.join()


class _Peers:
    """The counts of all processes, in torchrun's store."""

    def __init__(self) -> None:
        self.store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=datetime.timedelta(seconds=SILENT_S),
        )

    def key(self, number: int) -> str:
        """The name of a process's count; a new one after each restart by torchrun."""
        return f"alseg/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{number}"

    def watch(self, ended: threading.Event, lost: Callable[[str], None]) -> None:
        """Count, and look at the others' counts, until the block ends or one is gone."""
        now = time.monotonic()
        heard = {number: (0, now) for number in range(world_size()) if number != rank()}
        while not ended.wait(BEAT_S):
            try:
                self.store.add(self.key(rank()), 1)
                counts = {number: self.store.add(self.key(number), 0) for number in heard}
            except RuntimeError:  # the store is a process of the first host
                if not ended.is_set():
                    lost("the host of process 0")
                return
            now = time.monotonic()
            for number, count in counts.items():
                if count >= DONE:
                    del heard[number]
                elif count != heard[number][0]:
                    heard[number] = count, now
            if gone := [number for number, (_, since) in heard.items() if now - since > SILENT_S]:
                lost(f"process {', '.join(map(str, gone))} of {world_size()}")
                return
