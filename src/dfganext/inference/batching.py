"""Answers calls from many threads in batches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

import numpy as np

Result = TypeVar("Result")
Model = TypeVar("Model")


class _Call(NamedTuple):
    rows: np.ndarray
    answer: Future[np.ndarray]


class MicroBatcher(Generic[Model]):
    """Computes a model's answers to the rows of all calls that are waiting, in one batch.

    Calls that arrive while a batch is computed form the next one. A single call does not wait for others.

    One thread makes the model and computes. With a second one, OpenMP would have more threads than there are cores and put them
    to sleep after each layer: an image would take 1.5 times as long.

    Args:
        make: returns the model, which is kept as `model`.
        function: takes the model and rows (N, ...) and returns answers (N,), each independent of the other rows.
        max_rows: per batch, except where a single call has more.
    """

    def __init__(
        self, make: Callable[[], Model], function: Callable[[Model, np.ndarray], np.ndarray], max_rows: int
    ) -> None:
        self.function, self.max_rows = function, max_rows
        self._waiting: list[_Call] = []
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="micro-batcher")
        self.model = self.run_exclusive(make)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The answers to these rows, or the exception that the function raised for their batch."""
        call = _Call(rows, Future())
        with self._lock:
            self._waiting.append(call)
        self._thread.submit(self._compute)  # once per call: each takes at least the oldest call that is waiting
        return call.answer.result()

    def run_exclusive(self, function: Callable[[], Result]) -> Result:
        """The result of another function, run in the same thread and so never during a batch."""
        return self._thread.submit(function).result()

    def _compute(self) -> None:
        calls = self._next_batch()
        if not calls:
            return
        try:
            answers = self.function(self.model, np.concatenate([call.rows for call in calls]))
        except BaseException as error:
            for call in calls:
                call.answer.set_exception(error)
            return
        ends = np.cumsum([len(call.rows) for call in calls])
        for call, part in zip(calls, np.split(answers, ends[:-1]), strict=True):
            call.answer.set_result(part)

    def _next_batch(self) -> list[_Call]:
        """Remove the oldest calls from the list, as many as fit into a batch."""
        with self._lock:
            number, rows = 0, 0
            while number < len(self._waiting) and (
                not number or rows + len(self._waiting[number].rows) <= self.max_rows
            ):
                rows += len(self._waiting[number].rows)
                number += 1
            batch, self._waiting = self._waiting[:number], self._waiting[number:]
        return batch
