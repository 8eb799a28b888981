"""Calls of many threads, answered a batch at a time."""

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


class Together(Generic[Model]):
    """A model's answers to the rows of arrays, asked for from many threads, computed for all that wait at once.

    While one batch is computed, calls gather, and are the next one. A call that comes alone waits for nobody.

    One thread makes the model and computes. With a second one OpenMP would have more threads than there are cores, and put
    them to sleep after each layer: an image would take half as long again.

    Args:
        make: gives the model, kept as `model`.
        function: of the model and rows (N, ...), answers (N,), each independent of the other rows.
        most: rows of a batch, except where one call brings more.
    """

    def __init__(
        self, make: Callable[[], Model], function: Callable[[Model, np.ndarray], np.ndarray], most: int
    ) -> None:
        self.function, self.most = function, most
        self._waiting: list[_Call] = []
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="together")
        self.model = self.alone(make)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The function's answers to these rows, or the exception that it raised for their batch."""
        call = _Call(rows, Future())
        with self._lock:
            self._waiting.append(call)
        self._thread.submit(self._compute)  # as often as there are calls, and each takes one at least, the oldest
        return call.answer.result()

    def alone(self, function: Callable[[], Result]) -> Result:
        """What another function returns, in the same thread and so never beside a batch."""
        return self._thread.submit(function).result()

    def _compute(self) -> None:
        calls = self._gathered()
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

    def _gathered(self) -> list[_Call]:
        """The calls that have waited longest, taken off the list."""
        with self._lock:
            number, rows = 0, 0
            while number < len(self._waiting) and (not number or rows + len(self._waiting[number].rows) <= self.most):
                rows += len(self._waiting[number].rows)
                number += 1
            taken, self._waiting = self._waiting[:number], self._waiting[number:]
        return taken
