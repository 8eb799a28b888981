"""Threads, memory and work in batches. `prepare` must be called before PyTorch is imported."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import NoReturn, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

SPIN_COUNT = "3000"
"""OpenMP spin count before an idle thread sleeps. With libgomp's default, about 100 times as high, two processes that share a
machine's cores wait for each other's idle threads, and a training step takes four times as long."""

SERVER_SPIN_COUNT = "30000"
"""The same for a server, which computes in one process: with the count above, its threads sleep 140 times per image."""

MMAP_THRESHOLD = 32 * 2**20
"""Bytes; the largest value that glibc allows. Larger blocks are returned to the system when they are freed, or kept too."""

SERVER_MMAP_THRESHOLD = 8 * 2**20
"""Bytes; more than any tensor of one image at 256 pixels."""

ARENAS = "MALLOC_ARENA_MAX"
"""With more than one arena, each thread of a server keeps freed memory of its own: 1 GB more. It must be set before the process
starts, as `make serve` and the Dockerfile do."""

GARBAGE_THRESHOLDS = (50_000, 20, 50)
"""For gc.set_threshold. With Python's own, (700, 10, 10), the collector goes through the modules 1,800 times while they are
imported, a sixth of a stage's start, and finds nothing."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # malloc.h


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare(keep_all: bool = False, server: bool = False) -> None:
    """Set how this process uses memory and idle threads, and hide Pillow's warnings; results do not change.

    Python looks for cyclic garbage less often.

    By default, glibc returns the memory of tensors to the system when they are freed, and the system clears the same pages
    again in the next step: a third of the time of a training on a CPU. This keeps freed memory, in large pages except with
    `keep_all`. Variables of the environment that the user has set stay.

    Args:
        keep_all: keep blocks above `MMAP_THRESHOLD` too, which a training step at 256 pixels has many of. For a process that ends
            with its work; elsewhere, free space between such blocks would add up. PyTorch aligns blocks in large pages to 2 MiB,
            which leaves gaps between them, so this sets no large pages.
        server: return what large requests have used.
    """
    warnings.filterwarnings("ignore", module="PIL")
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    os.environ.setdefault("GOMP_SPINCOUNT", SERVER_SPIN_COUNT if server else SPIN_COUNT)
    if not keep_all:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's: transparent huge pages
    chosen = [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES")) and name != ARENAS]
    if chosen or not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    if server:
        library.mallopt(_M_MMAP_THRESHOLD, SERVER_MMAP_THRESHOLD)
        library.mallopt(_M_TRIM_THRESHOLD, 8 * SERVER_MMAP_THRESHOLD)
        return
    library.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
    library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    library.mallopt(_M_TOP_PAD, 2 * MMAP_THRESHOLD)
    if keep_all:
        library.mallopt(_M_MMAP_MAX, 0)


def leave(code: int) -> NoReturn:
    """End the process with this exit code: functions registered with atexit run, and output is flushed.

    Python's own end would take PyTorch's and its compiler's modules apart one by one, which takes two seconds.
    """
    atexit._run_exitfuncs()  # as multiprocessing's children call it
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, limit: int | None = None
) -> Iterator[Result]:
    """`map` in threads: results in the order of the items.

    Executor.map would read all items at once: its `buffersize` needs Python 3.14.

    Args:
        workers: threads; 0 computes in the caller's thread.
        limit: items, at least 1, that are read and whose results are not taken yet; 8 per worker by default.

    Raises:
        Whatever the function raises, at the place of its item; items that have not begun by then are not computed.
    """
    if not workers:
        yield from map(function, items)
        return
    items = iter(items)
    pool = ThreadPoolExecutor(workers)
    try:
        pending = deque(pool.submit(function, item) for item in islice(items, limit or 8 * workers))
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(items, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def batches_by_bytes(
    items: Iterable[Item], size_of: Callable[[Item], int], max_items: int, max_bytes: int
) -> Iterator[list[Item]]:
    """Consecutive items in lists of at most `max_items` and, except where a single item is larger, `max_bytes`.

    A full list is yielded before the next item is read.
    """
    batch: list[Item] = []
    held = 0
    for item in items:
        size = size_of(item)
        if batch and held + size > max_bytes:
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += size
        if len(batch) == max_items:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
