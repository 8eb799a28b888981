"""Calls of many threads, answered a batch at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass
class _Call:
    rows: np.ndarray
    answer: np.ndarray | None = None
    error: BaseException | None = None

    @property
    def open(self) -> bool:
        return self.answer is None and self.error is None


class Together:
    """A function of an array's rows, called from many threads, computed for all that wait at once.

    While one batch is computed, calls gather; whichever thread is next computes the answers of all of them. A call that comes
    alone waits for nobody.

    Args:
        function: (N, ...) -> (N,), a row's answer independent of the others. Never runs twice at a time.
        most: rows of a batch, except where one call brings more.
    """

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], most: int) -> None:
        self.function, self.most = function, most
        self.turn = threading.Lock()
        """Held while the function runs; take it to keep it from running."""
        self._waiting: list[_Call] = []
        self._list = threading.Lock()

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The function's answers to these rows, or the exception that it raised for their batch."""
        call = _Call(rows)
        with self._list:
            self._waiting.append(call)
        while call.open:
            with self.turn:
                if call.open:
                    self._compute(self._gathered())
        if call.error is not None:
            raise call.error
        assert call.answer is not None
        return call.answer

    def _gathered(self) -> list[_Call]:
        """The calls that have waited longest, taken off the list."""
        with self._list:
            number, rows = 0, 0
            while number < len(self._waiting) and (not number or rows + len(self._waiting[number].rows) <= self.most):
                rows += len(self._waiting[number].rows)
                number += 1
            taken, self._waiting = self._waiting[:number], self._waiting[number:]
        return taken

    def _compute(self, calls: list[_Call]) -> None:
        try:
            answers = self.function(np.concatenate([call.rows for call in calls]))
        except BaseException as error:
            for call in calls:
                call.error = error
            return
        ends = np.cumsum([len(call.rows) for call in calls])
        for call, part in zip(calls, np.split(answers, ends[:-1]), strict=True):
            call.answer = part
