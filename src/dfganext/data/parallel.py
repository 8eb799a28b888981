"""Threads that decode images, with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

JOBS_PER_WORKER = 8
"""Jobs under way per worker: enough that no worker is idle while a slow one is waited for."""


def ordered_map(function: Callable[[_Job], _Result], jobs: Iterable[_Job], workers: int) -> Iterator[_Result]:
    """Results in the order of the jobs, computed by `workers` threads (0: by the caller's thread).

    Own code because Executor.map takes all jobs at once before Python 3.14, so that results would fill the memory.
    """
    if workers == 0:
        yield from map(function, jobs)
        return
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[_Result]] = deque()
        for job in jobs:
            pending.append(pool.submit(function, job))
            if len(pending) >= JOBS_PER_WORKER * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
