import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dfganext.inference.batching import Together


class Slow:
    """Doubles each row's sum; remembers its batches, runs in one thread only, and waits in each batch until told to go on."""

    def __init__(self) -> None:
        self.batches, self.threads = [], set()
        self.started, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, rows):
        self.threads.add(threading.get_ident())
        assert len(self.threads) == 1
        self.batches.append(len(rows))
        self.started.release()
        assert self.go_on.acquire(timeout=30)
        if (rows < 0).any():
            raise ValueError("negative")
        return 2 * rows.sum(axis=1)


def rows(*values):
    return np.array([[value, value] for value in values], float)


@pytest.fixture
def slow():
    return Slow()


def together_of(function, most):
    return Together(lambda: function, lambda model, values: model(values), most)


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
    futures = gathered(together_of(slow, 10), slow, [rows(2, 3), rows(4), rows(5, 6, 7)])
    assert [future.result().tolist() for future in futures] == [[4], [8, 12], [16], [20, 24, 28]]
    assert slow.batches == [1, 6]


def test_batches_are_bounded_except_by_one_call(slow):
    futures = gathered(together_of(slow, 4), slow, [rows(2, 3), rows(4), rows(5, 6), rows(*range(9))])
    assert [len(future.result()) for future in futures] == [1, 2, 1, 2, 9]
    assert slow.batches == [1, 3, 2, 9]


def test_an_exception_reaches_those_it_concerns_and_harms_no_later_call(slow):
    together = together_of(slow, 2)
    futures = gathered(together, slow, [rows(2), rows(-1), rows(4)])
    assert futures[0].result() == [4] and futures[3].result() == [16]
    for future in futures[1:3]:
        with pytest.raises(ValueError, match="negative"):
            future.result()
    assert together(rows(3)) == [12]


def test_what_is_to_be_alone_waits_for_the_batch_and_the_next_batch_for_it(slow):
    together = together_of(slow, 2)
    order = []
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(together, rows(1))
        assert slow.started.acquire(timeout=30)
        alone = pool.submit(together.alone, lambda: order.append(len(slow.batches)) or threading.get_ident())
        while together._thread._work_queue.qsize() < 1:
            pass
        last = pool.submit(together, rows(2))
        slow.go_on.release()
        slow.go_on.release()
        assert first.result(timeout=30) == [4] and last.result(timeout=30) == [8]
        assert {alone.result(timeout=30)} == slow.threads and order == [1]


def test_a_function_alone_may_fail(slow):
    with pytest.raises(ZeroDivisionError):
        together_of(slow, 2).alone(lambda: 1 / 0)


def test_the_model_is_made_in_the_thread_that_computes():
    together = Together(threading.get_ident, lambda made, values: values[:, 0] * 0 + (made == threading.get_ident()), 4)
    assert together(rows(1, 2)).tolist() == [1, 1]
    assert together.model != threading.get_ident()


def test_many_threads_at_once():
    together = together_of(lambda values: values.sum(axis=1), 5)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda value: together(rows(value, value + 1)), range(500)))
    assert [answer.tolist() for answer in answers] == [[2 * value, 2 * value + 2] for value in range(500)]
