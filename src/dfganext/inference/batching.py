"""Answers calls from many threads in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

Result = TypeVar("Result")


class _Call(NamedTuple):
    rows: np.ndarray
    answer: Future[np.ndarray]


class MicroBatcher:
    """Computes a function of the rows of all calls that are waiting, in one batch.

    Calls that arrive while a batch is computed form the next one. A single call does not wait for others.

    One thread computes, and should also make the model (`run_exclusive`). With a second one, OpenMP would have more threads than
    there are cores and put them to sleep after each layer: an image would take 1.5 times as long.

    Args:
        function: takes rows (N, ...) and returns answers (N,), each independent of the other rows.
        max_rows: per batch, except where a single call has more.
    """

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], max_rows: int) -> None:
        self.function, self.max_rows = function, max_rows
        self._waiting: deque[_Call] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="micro-batcher")

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The answers to these rows, or the exception that the function raised for their batch."""
        call = _Call(rows, Future())
        self._waiting.append(call)
        self._thread.submit(self._compute)  # once per call: each takes at least the oldest call that is waiting
        return call.answer.result()

    def run_exclusive(self, function: Callable[[], Result]) -> Result:
        """The result of another function, run in the same thread and so never during a batch."""
        return self._thread.submit(function).result()

    def _compute(self) -> None:
        """Answer the oldest calls, as many as fit into a batch."""
        calls: list[_Call] = []
        rows = 0
        while self._waiting and (not calls or rows + len(self._waiting[0].rows) <= self.max_rows):
            calls.append(self._waiting.popleft())
            rows += len(calls[-1].rows)
        if not calls:
            return
        try:
            answers = self.function(np.concatenate([call.rows for call in calls]))
        except BaseException as error:
            for call in calls:
                call.answer.set_exception(error)
            return
        ends = np.cumsum([len(call.rows) for call in calls])
        for call, part in zip(calls, np.split(answers, ends[:-1]), strict=True):
            call.answer.set_result(part)
