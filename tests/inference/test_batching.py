import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dfganext.inference.batching import MicroBatcher


class Slow:
    """Doubles each row's sum; records the sizes of batches, checks that one thread calls it, and waits for go_on in each."""

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


def run_calls(batcher, slow, calls):
    """Futures of a first call, and of calls that arrive in this order while it is computed; all are done on return."""
    pool = ThreadPoolExecutor(len(calls) + 1)
    futures = [pool.submit(batcher, rows(1))]
    assert slow.started.acquire(timeout=30)
    for number, call in enumerate(calls):
        futures.append(pool.submit(batcher, call))
        while len(batcher._waiting) <= number:
            pass
    for _ in range(20):
        slow.go_on.release()
    pool.shutdown()
    return futures


def test_waiting_calls_form_one_batch_and_get_their_own_answers(slow):
    futures = run_calls(MicroBatcher(slow, 10), slow, [rows(2, 3), rows(4), rows(5, 6, 7)])
    assert [future.result().tolist() for future in futures] == [[4], [8, 12], [16], [20, 24, 28]]
    assert slow.batches == [1, 6]


def test_only_a_single_call_can_exceed_the_rows_of_a_batch(slow):
    futures = run_calls(MicroBatcher(slow, 4), slow, [rows(2, 3), rows(4), rows(5, 6), rows(*range(9))])
    assert [len(future.result()) for future in futures] == [1, 2, 1, 2, 9]
    assert slow.batches == [1, 3, 2, 9]


def test_an_exception_reaches_the_calls_of_its_batch_only(slow):
    batcher = MicroBatcher(slow, 2)
    futures = run_calls(batcher, slow, [rows(2), rows(-1), rows(4)])
    assert futures[0].result() == [4] and futures[3].result() == [16]
    for future in futures[1:3]:
        with pytest.raises(ValueError, match="negative"):
            future.result()
    assert batcher(rows(3)) == [12]


def test_an_exclusive_function_runs_between_batches(slow):
    batcher = MicroBatcher(slow, 2)
    order = []
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher, rows(1))
        assert slow.started.acquire(timeout=30)
        exclusive = pool.submit(batcher.run_exclusive, lambda: order.append(len(slow.batches)) or threading.get_ident())
        while batcher._thread._work_queue.qsize() < 1:
            pass
        last = pool.submit(batcher, rows(2))
        slow.go_on.release()
        slow.go_on.release()
        assert first.result(timeout=30) == [4] and last.result(timeout=30) == [8]
        assert {exclusive.result(timeout=30)} == slow.threads and order == [1]


def test_an_exclusive_function_may_raise(slow):
    with pytest.raises(ZeroDivisionError):
        MicroBatcher(slow, 2).run_exclusive(lambda: 1 / 0)


def test_many_threads():
    batcher = MicroBatcher(lambda values: values.sum(axis=1), 5)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda value: batcher(rows(value, value + 1)), range(500)))
    assert [answer.tolist() for answer in answers] == [[2 * value, 2 * value + 2] for value in range(500)]
