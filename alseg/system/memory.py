"""Memory that a process has freed stays with it, so that it need not be cleared again.

The C library gives large blocks back to the operating system at once, and gets them again page by
page, each filled with zeros. A network's activations come and go many times a second: on a CPU that
was a quarter of the time of a pass.
"""

from __future__ import annotations

import ctypes
import os
import sys

# names and values of malloc.h, glibc
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
MIB = 1024**2
# no block of its own from the system, and up to 2 GiB that lie idle
OPTIONS = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 * MIB}


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory for the process; returns whether it has agreed.

    Nothing is changed without glibc, or where the environment has settings of its own
    (``MALLOC_...``, ``GLIBC_TUNABLES``).
    """
    own = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if sys.platform != "linux" or own:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    agreed = [mallopt(option, value) == 1 for option, value in OPTIONS.items()]
    return all(agreed)
