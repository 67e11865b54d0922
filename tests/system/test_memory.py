"""Freed memory stays with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Blocks of 2 to 20 MiB are taken, written and freed again and again.
CODE = """
import resource
import torch
from alseg.system.memory import keep_freed_memory

def work(times):
    for _ in range(times):
        for size in (20, 2, 12):
            blocks = [torch.ones(size * 2**18) for _ in range(2)]
            del blocks

print(keep_freed_memory())
work(20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work(20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**settings: str) -> tuple[bool, int]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env=environment | settings
    )
    is_kept, faults = done.stdout.split()
    return is_kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_freed_memory_is_taken_again_without_page_faults() -> None:
    is_kept, faults = run()
    assert is_kept
    assert faults < 3000  # of 348160 pages of 4 KiB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_settings_of_the_environment_win() -> None:
    is_kept, faults = run(MALLOC_MMAP_THRESHOLD_="65536")
    assert not is_kept
    assert faults > 30000
