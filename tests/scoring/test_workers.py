import os
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers import png

from dfganext.data.discovery import Found, Unread
from dfganext.inference.detector import Detector
from dfganext.scoring import stores, workers
from dfganext.scoring.parts import Part, PartResult


def test_reading_ahead_is_bounded(made, monkeypatch):
    """At most two batches are in memory: the one that is predicted and the next."""
    monkeypatch.setattr(workers, "BATCH_BYTES", 100)
    monkeypatch.setattr(workers, "BATCH_FILES", 4)
    batches = [[10, 90], [50], [60], [500], [1, 1, 1], [99], [100], [40, 1, 2, 3], [4]]
    prediction = Detector.load(made / "model").predict([png(0, 1)])
    begun, predicted = [], []

    class Predictor:
        def predict(self, encoded):
            time.sleep(0.02)  # the next batch may be read meanwhile
            predicted.append(encoded)
            assert len(begun) <= sum(map(len, batches[: len(predicted) + 1]))
            return prediction * len(encoded)

    def read(path):
        begun.append(path)
        return b"x" * int(path)

    sizes = [size for batch in batches for size in batch]
    rows = list(workers.predict_images(Predictor(), [Found(str(size), size) for size in sizes], read, threads=2))
    assert [row.path for row in rows] == list(map(str, sizes))
    assert [[len(data) for data in batch] for batch in predicted] == batches


class Crashed(BaseException):
    """Stands for the crash of a process."""


def worker_of(folder, made, read, strict=False):
    """A worker without Ray."""
    worker = workers.Worker.__new__(workers.Worker)
    worker.detector, worker.read, worker.threads = Detector.load(made / "model"), read, 1
    worker.writer = workers.Writer(folder, "v", strict)
    return worker


def answering(**answers):
    return lambda path: answers.get(path, png(0, 1))


@pytest.mark.parametrize("strict", [False, True])
def test_new_rows_replace_old_ones(made, tmp_path, strict):
    folder = stores.Folder.at(str(tmp_path))
    temporary, permanent = Unread("cannot be read (I/O error)", temporary=True), Unread("too large", temporary=False)
    read = answering(b=temporary, c=permanent, d=b"no image")
    first = worker_of(folder, made, read, strict)
    done = first.score_part(Part("part-0.parquet", [Found(path, 1, 10) for path in "abcd"]))
    assert done == PartResult("part-0.parquet", 4, 0, 3)
    table = pd.read_parquet(tmp_path)
    assert table.retry.tolist() == [False, True, False, False]
    assert table.threshold.tolist() == [0.45] * 4
    second = worker_of(folder, made, answering(a=temporary, c=temporary), strict)
    done = second.score_part(Part("part-0.parquet", [Found("b", 1, 10), Found("a", 2, 11)], replaces=True))
    assert done == PartResult("part-0.parquet", 2, 2, 1)
    table = pd.read_parquet(tmp_path)
    assert table.path.tolist() == list("abcd")
    assert table.error.notna().tolist() == [True, False, True, True]
    assert table["size"].tolist() == [2, 1, 1, 1]
    # an image that stays unreadable, the only one left, does not stop the run
    done = second.score_part(Part("part-0.parquet", [Found("c", 3, 10)], replaces=True))
    assert done == PartResult("part-0.parquet", 1, 1, 1)
    assert pd.read_parquet(tmp_path).retry.tolist() == [True, False, True, False]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
@pytest.mark.parametrize("how", [OSError(28, "No space left on device"), Crashed()])
def test_an_interrupted_replacement_keeps_the_old_rows(made, tmp_path, monkeypatch, fails, how):
    folder = stores.Folder.at(str(tmp_path))
    one = worker_of(folder, made, answering(b=Unread("cannot be read", temporary=True)))
    one.score_part(Part("part-0.parquet", [Found(path, 1, 10) for path in "ab"]))
    before = (tmp_path / "part-0.parquet").read_bytes()

    def broken(*_):
        raise how

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if fails == "fsync" else (Path, "replace")), broken)
        again = Part("part-0.parquet", [Found("b", 1, 10)], replaces=True)
        if isinstance(how, Crashed):
            with pytest.raises(Crashed):
                one.score_part(again)
        else:
            assert one.score_part(again).failure.endswith(
                "part-0.parquet cannot be written ([Errno 28] No space left on device)"
            )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"part-0.parquet": before}


def test_readers_find_one_row_per_path_while_files_are_replaced(made, tmp_path):
    folder = stores.Folder.at(str(tmp_path))
    one = worker_of(folder, made, answering())
    for name in ("part-0.parquet", "part-1.parquet"):
        one.score_part(Part(name, [Found(f"{name}/{index}", 1, 10) for index in range(4)]))
    ended, seen = threading.Event(), []

    def look():
        while not ended.is_set():
            seen.append(sorted(pd.read_parquet(tmp_path).path))

    reader = threading.Thread(target=look)
    reader.start()
    for count in range(30):
        one.score_part(Part("part-1.parquet", [Found(f"part-1.parquet/{count % 4}", count, 10)], replaces=True))
    ended.set()
    reader.join()
    expected = sorted(f"{name}/{index}" for name in ("part-0.parquet", "part-1.parquet") for index in range(4))
    assert len(seen) > 3 and all(paths == expected for paths in seen)


def test_a_damaged_or_missing_old_file_is_a_failure(made, tmp_path):
    one = worker_of(stores.Folder.at(str(tmp_path)), made, answering())
    again = Part("part-0.parquet", [Found("a", 1, 10)], replaces=True)
    assert "part-0.parquet" in one.score_part(again).failure
    (tmp_path / "part-0.parquet").write_bytes(b"damaged")
    assert "part-0.parquet" in one.score_part(again).failure
    assert (tmp_path / "part-0.parquet").read_bytes() == b"damaged"


def test_a_new_part_without_a_readable_image_is_a_failure_over_a_network(made, tmp_path):
    unread = Unread("cannot be read (no route to host)", temporary=True)
    part = Part("part-0.parquet", [Found(path, 1, 10) for path in "ab"])
    result = worker_of(stores.Folder.at(str(tmp_path)), made, answering(a=unread, b=unread), strict=True).score_part(
        part
    )
    assert result.failure == "a cannot be read (no route to host), like all images after it"
    assert list(tmp_path.iterdir()) == []
    result = worker_of(stores.Folder.at(str(tmp_path)), made, answering(a=unread, b=unread)).score_part(part)
    assert result == PartResult("part-0.parquet", 2, 0, 2)
