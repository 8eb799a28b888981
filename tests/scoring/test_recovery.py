"""Parts on workers that crash, in a simulation of Ray; test_score.py has Ray itself."""

import random
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest

from dfganext.data.discovery import Found
from dfganext.errors import UserError
from dfganext.scoring.parts import Part, PartResult
from dfganext.scoring.recovery import ATTEMPTS, CRASHED, PartRunner
from dfganext.scoring.rows import Row


class CrashError(Exception):
    """Ray's RayActorError."""


class FailureError(Exception):
    """Ray's RayTaskError, of an exception that a worker raised."""

    def __init__(self, cause):
        super().__init__("a traceback")
        self.cause = cause


class SimulatedRay:
    """The functions of Ray that `PartRunner` calls, from several threads. Notes the workers that are running."""

    def __init__(self, crashes, starts=lambda number: True):
        self.crashes, self.starts = crashes, starts
        self.started, self.alive, self.calls = 0, set(), []

    def start_worker(self):
        number, self.started = self.started, self.started + 1
        self.alive.add(number)

        def method(function):
            def remote(*arguments):
                assert number in self.alive
                self.calls.append((number, *arguments))
                return (number, function, arguments, len(self.calls))

            return SimpleNamespace(remote=remote)

        return SimpleNamespace(number=number, ready=method(self.ready), score_part=method(self.score_part),
                               predict_image=method(self.predict_image))  # fmt: skip

    def ready(self, number):
        if not self.starts(number):
            raise CrashError("out of memory")

    def score_part(self, number, part):
        for image in part.images:
            if self.crashes(image.path):
                raise CrashError
        return PartResult(part.name, len(part.images))

    def predict_image(self, number, image):
        if self.crashes(image.path):
            raise CrashError
        return Row(image.path, "real", 0.25, 0.5, "real", None, None, False, image.size, image.modified, True)

    def get(self, value):
        if isinstance(value, Part):
            return value
        number, function, arguments, _ = value
        try:
            return function(number, *arguments)
        except CrashError:
            self.alive.discard(number)
            raise

    def kill(self, worker):
        self.alive.discard(worker.number)

    def run(self, monkeypatch, parts, workers=3):
        """Results, and the rows that were written after a crash, by part."""
        module, exceptions = ModuleType("ray"), ModuleType("ray.exceptions")
        module.get, module.kill = self.get, self.kill
        exceptions.RayActorError = exceptions.OutOfMemoryError = CrashError
        exceptions.RayTaskError = FailureError
        monkeypatch.setitem(sys.modules, "ray", module)
        monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)
        written = {}

        def write(part, rows):
            assert part.name not in written
            written[part.name] = rows
            return PartResult(part.name, len(rows), 0, sum(row.error is not None for row in rows))

        runner = PartRunner(self.start_worker, workers, 0.5, write)
        results = list(runner.run(parts))
        assert not self.alive  # none is left running
        return results, written


def parts_of(images, size):
    found = tuple(Found(f"{index:02d}", 1, 10) for index in range(images))
    return [Part(f"part-{start}", found[start : start + size]) for start in range(0, images, size)]


@pytest.mark.parametrize("seed", range(20))
def test_every_part_is_done_once_whatever_crashes(monkeypatch, seed):
    generator = random.Random(seed)
    crashing = {f"{index:02d}" for index in range(40) if generator.random() < 0.1}
    parts = parts_of(40, generator.randint(1, 12))

    def crashes(path):
        return path in crashing or generator.random() < 0.01  # now and then for another reason

    results, written = SimulatedRay(crashes).run(monkeypatch, parts)
    assert sorted(result.name for result in results) == sorted(part.name for part in parts)
    assert sum(result.scored for result in results) == 40 and not any(result.failure for result in results)
    for part in parts:
        paths = [image.path for image in part.images]
        rows = written.get(part.name)
        assert rows or not crashing & set(paths)
        if rows:
            assert [row.path for row in rows] == paths
            assert {row.path for row in rows if row.error} == crashing & set(paths)
            assert {row.error for row in rows if row.error} <= {CRASHED}


def test_an_image_that_crashes_its_worker_is_tried_alone(monkeypatch):
    ray = SimulatedRay(lambda path: path == "03")
    results, written = ray.run(monkeypatch, parts_of(16, 8), workers=1)
    assert sorted(results) == [PartResult("part-0", 8, 0, 1), PartResult("part-8", 8)]
    images = [call[1].path for call in ray.calls if len(call) > 1 and isinstance(call[1], Found)]
    assert sorted(images) == sorted([f"{index:02d}" for index in range(8)] + ["03"] * (ATTEMPTS - 1))
    assert [row.error for row in written["part-0"]] == [CRASHED if index == 3 else None for index in range(8)]
    assert ray.started == 1 + 1 + ATTEMPTS


def test_an_image_that_crashes_its_worker_once_is_predicted(monkeypatch):
    crashes = iter([False, True, False, True])
    results, written = SimulatedRay(lambda path: next(crashes, False)).run(monkeypatch, parts_of(4, 4))
    assert results == [PartResult("part-0", 4)] and not any(row.error for row in written["part-0"])


def test_a_worker_that_cannot_load_the_model_ends_the_run_with_its_sentence(monkeypatch):
    ray = SimulatedRay(lambda path: False)

    def ready(number):
        raise FailureError(UserError("No classifier can be loaded from the model."))

    ray.ready = ready
    with pytest.raises(UserError, match=r"^No classifier can be loaded from the model\.$"):
        ray.run(monkeypatch, parts_of(4, 2))
    assert not ray.alive


def test_workers_that_do_not_start_end_the_run(monkeypatch):
    with pytest.raises(UserError, match=r"Workers cannot start \(out of memory\): free memory"):
        SimulatedRay(lambda path: False, starts=lambda number: False).run(monkeypatch, parts_of(4, 2))
    # one that starts at the last attempt does all the work
    starts = SimulatedRay(lambda path: False, starts=lambda number: number == ATTEMPTS - 1)
    results, _ = starts.run(monkeypatch, parts_of(4, 2), workers=1)
    assert len(results) == 2


def test_a_worker_for_which_there_is_no_room_gets_no_part(monkeypatch):
    room = threading.Event()
    ray = SimulatedRay(lambda path: False, starts=lambda number: number == 0 or (room.wait(30) and False))
    kill = ray.kill
    monkeypatch.setattr(ray, "kill", lambda worker: room.set() or kill(worker))
    results, _ = ray.run(monkeypatch, parts_of(8, 2), workers=2)
    assert len(results) == 4 and ray.started == 2
