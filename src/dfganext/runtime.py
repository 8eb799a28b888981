"""How this process uses threads and memory: faster on the same bits. To be called before PyTorch is imported."""

from __future__ import annotations

import ctypes
import os
import sys

SPINS = "3000"
"""Looks that an idle OpenMP thread takes for work before it sleeps. libgomp's default, about a hundred times as many, has two
processes that share a machine's cores wait for each other's idle threads: a training step beside one took four times as long."""

MMAP_THRESHOLD = 32 * 2**20
"""Bytes; glibc allows no more. Larger blocks go back to the system once freed."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare() -> None:
    """Keep freed memory for the next batch, in large pages, and let idle threads sleep soon.

    By default glibc returns tensors to the system as soon as they are freed, which then has to clear the same pages again at
    the next step: a third of the time of a training on a CPU. What a user has set in the environment stays. Where the C library
    is not glibc, memory is left as it is.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's: transparent huge pages
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(_M_TOP_PAD, 2 * MMAP_THRESHOLD)
