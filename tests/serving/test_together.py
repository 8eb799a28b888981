import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dfganext.serving.together import Together


class Slow:
    """Doubles each row's sum; remembers its batches, refuses to run twice at once, and waits in each until told to go on."""

    def __init__(self) -> None:
        self.batches, self.running, self.started, self.go_on = [], False, threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, rows):
        assert not self.running
        self.running = True
        self.batches.append(len(rows))
        self.started.release()
        assert self.go_on.acquire(timeout=30)
        self.running = False
        if (rows < 0).any():
            raise ValueError("negative")
        return 2 * rows.sum(axis=1)


def rows(*values):
    return np.array([[value, value] for value in values], float)


@pytest.fixture
def slow():
    return Slow()


def gathered(together, slow, calls):
    """The futures of a first call, in work, and of calls that wait for it, in this order; all are computed afterwards."""
    pool = ThreadPoolExecutor(len(calls) + 1)
    futures = [pool.submit(together, rows(1))]
    assert slow.started.acquire(timeout=30)
    for number, call in enumerate(calls):
        futures.append(pool.submit(together, call))
        while len(together._waiting) <= number:
            pass
    for _ in range(20):
        slow.go_on.release()
    pool.shutdown()
    return futures


def test_what_waits_is_computed_at_once_and_each_gets_its_own(slow):
    futures = gathered(Together(slow, 10), slow, [rows(2, 3), rows(4), rows(5, 6, 7)])
    assert [future.result().tolist() for future in futures] == [[4], [8, 12], [16], [20, 24, 28]]
    assert slow.batches == [1, 6]


def test_batches_are_bounded_except_by_one_call(slow):
    futures = gathered(Together(slow, 4), slow, [rows(2, 3), rows(4), rows(5, 6), rows(*range(9))])
    assert [len(future.result()) for future in futures] == [1, 2, 1, 2, 9]
    assert slow.batches == [1, 3, 2, 9]


def test_an_exception_reaches_those_it_concerns_and_harms_no_later_call(slow):
    together = Together(slow, 2)
    futures = gathered(together, slow, [rows(2), rows(-1), rows(4)])
    assert futures[0].result() == [4] and futures[3].result() == [16]
    for future in futures[1:3]:
        with pytest.raises(ValueError, match="negative"):
            future.result()
    assert together(rows(3)) == [12]


def test_while_the_turn_is_taken_the_function_rests(slow):
    together = Together(slow, 2)
    with together.turn, ThreadPoolExecutor(1) as pool:
        future = pool.submit(together, rows(1))
        while not together._waiting:
            pass
        assert not slow.batches
        together.turn.release()
        slow.go_on.release()
        assert future.result(timeout=30) == [4]
        together.turn.acquire()


def test_many_threads_at_once():
    together = Together(lambda values: values.sum(axis=1), 5)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda value: together(rows(value, value + 1)), range(500)))
    assert [answer.tolist() for answer in answers] == [[2 * value, 2 * value + 2] for value in range(500)]
