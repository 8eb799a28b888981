import time
from types import SimpleNamespace

import pandas as pd
from helpers import png

from dfganext import stores
from dfganext.detector import Detector
from dfganext.inputs import Found
from dfganext.scoring import workers
from dfganext.scoring.parts import Done, Part


def test_reading_ahead_is_bounded(made, monkeypatch):
    """Two batches are in memory at most: the one that is judged and the next."""
    monkeypatch.setattr(workers, "BATCH_BYTES", 100)
    monkeypatch.setattr(workers, "BATCH_FILES", 4)
    batches = [[10, 90], [50], [60], [500], [1, 1, 1], [99], [100], [40, 1, 2, 3], [4]]
    verdict = Detector.load(made / "model").judge([png(0, 1)])
    begun, judged = [], []

    class Judge:
        def judge(self, encoded):
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


def attempts(folder, killers, made, deaths_elsewhere=0):
    """Attempts at a part with images that kill, each by a new worker, until one tells how it ended."""
    watch = workers.Watch()
    calls = {name: SimpleNamespace(remote=getattr(watch, name)) for name in ("begin", "at", "end")}
    paths = [f"{index}.png" for index in range(8)]
    random_deaths = iter(range(deaths_elsewhere))

    def read(path):
        if path in killers or (path == "5.png" and next(random_deaths, None) is not None):
            raise Died
        return png(0, 1)

    for count in range(1, 100):
        worker = workers.Worker.__new__(workers.Worker)
        worker.detector = Detector.load(made / "model")
        worker.version, worker.read, worker.strict, worker.threads = "v", read, False, 1
        worker.folder, worker.watch, worker.wait = folder, SimpleNamespace(**calls), lambda answer: answer
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
