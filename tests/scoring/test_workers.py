import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from helpers import png

from dfganext.data.discovery import Found, Unread
from dfganext.inference.detector import Detector
from dfganext.scoring import stores, workers
from dfganext.scoring.parts import Done, Part


def test_reading_ahead_is_bounded(made, monkeypatch):
    """Two batches are in memory at most: the one that is judged and the next."""
    monkeypatch.setattr(workers, "BATCH_BYTES", 100)
    monkeypatch.setattr(workers, "BATCH_FILES", 4)
    batches = [[10, 90], [50], [60], [500], [1, 1, 1], [99], [100], [40, 1, 2, 3], [4]]
    verdict = Detector.load(made / "model").predict([png(0, 1)])
    begun, judged = [], []

    class Judge:
        def predict(self, encoded):
            time.sleep(0.02)  # the next batch may be read meanwhile
            judged.append(encoded)
            assert len(begun) <= sum(map(len, batches[: len(judged) + 1]))
            return verdict * len(encoded)

    def read(path):
        begun.append(path)
        return b"x" * int(path)

    sizes = [size for batch in batches for size in batch]
    told = list(workers.judge_images(Judge(), [Found(str(size), size) for size in sizes], read, threads=2))
    assert [row.path for row in told] == list(map(str, sizes))
    assert [[len(data) for data in batch] for batch in judged] == batches


class Died(BaseException):
    """In the place of a worker's death."""


def worker_of(folder, made, read, watch, strict=False):
    """A worker without Ray."""
    worker = workers.Worker.__new__(workers.Worker)
    worker.detector = Detector.load(made / "model")
    worker.version, worker.read, worker.strict, worker.threads, worker.folder = "v", read, strict, 1, folder
    calls = {name: SimpleNamespace(remote=getattr(watch, name)) for name in ("begin", "at", "end")}
    worker.watch, worker.wait = SimpleNamespace(**calls), lambda answer: answer
    return worker


def attempts(folder, killers, made, deaths_elsewhere=0):
    """Attempts at a part with images that kill, each by a new worker, until one tells how it ended."""
    watch = workers.Watch()
    paths = [f"{index}.png" for index in range(8)]
    random_deaths = iter(range(deaths_elsewhere))

    def read(path):
        if path in killers or (path == "5.png" and next(random_deaths, None) is not None):
            raise Died
        return png(0, 1)

    for count in range(1, 100):
        worker = worker_of(folder, made, read, watch)
        try:
            done = worker._do(Part("part-0.parquet", [Found(path, 1) for path in paths]))
        except Died:
            continue
        assert done.lost or not watch.seen
        return count, done
    raise AssertionError("it never ends")


def test_an_image_that_kills_is_a_row_with_an_error(made, tmp_path):
    folder = stores.folder_at(str(tmp_path))
    for killers, expected in (((), 1), (("3.png",), 4), (("0.png", "3.png", "7.png"), 8)):
        count, done = attempts(folder, killers, made)
        assert (count, done) == (expected, Done("part-0.parquet", 8, len(killers)))
        table = pd.read_parquet(tmp_path)
        assert table.path[table.error == workers.KILLER].tolist() == list(killers)
        assert table.p_fake.notna().sum() == 8 - len(killers)


def test_a_worker_that_dies_otherwise_accuses_no_image(made, tmp_path):
    count, done = attempts(stores.folder_at(str(tmp_path)), (), made, deaths_elsewhere=2)
    assert (count, done) == (3, Done("part-0.parquet", 8, 0))


def test_a_part_that_kills_for_ever_is_given_up(made, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "judge_images", lambda *_: (_ for _ in ()).throw(Died))
    monkeypatch.setattr(workers.Watch, "at", lambda *_: None)
    count, done = attempts(stores.folder_at(str(tmp_path)), (), made)
    assert (count, done) == (workers.ATTEMPTS + 1, Done("part-0.parquet", lost=True))
    assert not list(tmp_path.iterdir())


def answering(**answers):
    return lambda path: answers.get(path, png(0, 1))


@pytest.mark.parametrize("strict", [False, True])
def test_new_rows_take_the_place_of_the_old_ones(made, tmp_path, strict):
    folder = stores.folder_at(str(tmp_path))
    passing, lasting = Unread("cannot be read (I/O error)", temporary=True), Unread("too large", temporary=False)
    read = answering(b=passing, c=lasting, d=b"no image")
    first = worker_of(folder, made, read, workers.Watch(), strict)
    done = first._do(Part("part-0.parquet", [Found(path, 1, 10) for path in "abcd"]))
    assert done == Done("part-0.parquet", 4, 3)
    table = pd.read_parquet(tmp_path)
    assert table.retry.tolist() == [False, True, False, False]
    assert table.threshold.tolist() == [0.45] * 4
    second = worker_of(folder, made, answering(a=passing, c=passing), workers.Watch(), strict)
    done = second._do(Part("part-0.parquet", [Found("b", 1, 10), Found("a", 2, 11)], replaces=True))
    assert done == Done("part-0.parquet", 2, 1, again=True)
    table = pd.read_parquet(tmp_path)
    assert table.path.tolist() == list("abcd")
    assert table.error.notna().tolist() == [True, False, True, True]
    assert table["size"].tolist() == [2, 1, 1, 1]
    # one object that stays unreadable, all that is left to do in a store, does not stop the run
    done = second._do(Part("part-0.parquet", [Found("c", 3, 10)], replaces=True))
    assert done == Done("part-0.parquet", 1, 1, again=True)
    assert pd.read_parquet(tmp_path).retry.tolist() == [True, False, True, False]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
@pytest.mark.parametrize("how", [OSError(28, "No space left on device"), Died()])
def test_a_replacement_that_breaks_off_leaves_the_old_rows(made, tmp_path, monkeypatch, fails, how):
    folder = stores.folder_at(str(tmp_path))
    one = worker_of(folder, made, answering(b=Unread("cannot be read", temporary=True)), workers.Watch())
    one._do(Part("part-0.parquet", [Found(path, 1, 10) for path in "ab"]))
    before = (tmp_path / "part-0.parquet").read_bytes()

    def broken(*_):
        raise how

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if fails == "fsync" else (Path, "replace")), broken)
        again = Part("part-0.parquet", [Found("b", 1, 10)], replaces=True)
        if isinstance(how, Died):
            with pytest.raises(Died):
                one._do(again)
        else:
            assert one._do(again).failure.endswith(
                "part-0.parquet cannot be written ([Errno 28] No space left on device)"
            )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"part-0.parquet": before}


def test_readers_find_one_row_a_path_at_any_time(made, tmp_path):
    """While files are replaced, over and over, a reader sees every path once."""
    folder = stores.folder_at(str(tmp_path))
    one = worker_of(folder, made, answering(), workers.Watch())
    for name in ("part-0.parquet", "part-1.parquet"):
        one._do(Part(name, [Found(f"{name}/{index}", 1, 10) for index in range(4)]))
    ended, seen = threading.Event(), []

    def look():
        while not ended.is_set():
            seen.append(sorted(pd.read_parquet(tmp_path).path))

    reader = threading.Thread(target=look)
    reader.start()
    for count in range(30):
        one._do(Part("part-1.parquet", [Found(f"part-1.parquet/{count % 4}", count, 10)], replaces=True))
    ended.set()
    reader.join()
    expected = sorted(f"{name}/{index}" for name in ("part-0.parquet", "part-1.parquet") for index in range(4))
    assert len(seen) > 3 and all(paths == expected for paths in seen)


def test_an_old_file_that_is_damaged_or_gone_is_told(made, tmp_path):
    one = worker_of(stores.folder_at(str(tmp_path)), made, answering(), workers.Watch())
    again = Part("part-0.parquet", [Found("a", 1, 10)], replaces=True)
    assert "part-0.parquet" in one._do(again).failure
    (tmp_path / "part-0.parquet").write_bytes(b"damaged")
    assert "part-0.parquet" in one._do(again).failure
    assert (tmp_path / "part-0.parquet").read_bytes() == b"damaged"
