"""Runs parts on workers, and finds the images that crash their worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

from dfganext.data.discovery import Found, printable
from dfganext.errors import UserError
from dfganext.scoring.parts import Part, PartResult
from dfganext.scoring.rows import Row

ATTEMPTS = 3
"""Worker crashes on one image alone, after which the image gets a row with an error; also, of starting workers in a row."""

CRASHED = "crashes the process that decodes it"
"""The error of such an image."""


class Job(NamedTuple):
    """What a worker does in one call: a whole part (given by its reference), or one image, at a place of its part."""

    part: Any
    place: int = 0
    image: Found | None = None
    crashes: int = 0


class PartRunner:
    """Runs parts on Ray actors, one job per worker at a time; a worker that crashes is replaced.

    A part whose worker crashed is split into one job per image, so an image that crashes its worker affects no other image.
    When all images of a split part have a row, the part is written in this process.

    Args:
        start_worker: starts a `Worker` actor that Ray does not restart: Ray would repeat a part without end.
        workers: how many to run at a time.
        threshold: for the rows of images that crash their worker.
        write: `Writer.write`.
    """

    def __init__(
        self,
        start_worker: Callable[[], Any],
        workers: int,
        threshold: float,
        write: Callable[[Part, Sequence[Row]], PartResult],
    ) -> None:
        self.start_worker, self.workers, self.threshold, self.write = start_worker, workers, threshold, write
        self._jobs: deque[Job] = deque()
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, Job | None]] = {}  # by the reference to the result; no job: it is starting
        self._split: dict[Any, tuple[Part, dict[int, Row]]] = {}
        self._failed_starts = 0

    def run(self, parts: Sequence[Any]) -> Generator[PartResult, None, None]:
        """The results of parts, given as references, in the order in which they are done.

        Raises:
            UserError: workers cannot start.
        """
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError

        self._jobs.extend(map(Job, parts))
        for _ in range(min(self.workers, len(parts))):
            self._start()
        try:
            while self._jobs or any(job for _, job in self._running.values()):
                (done, *_), _ = ray.wait(list(self._running))
                worker, job = self._running.pop(done)
                try:
                    answer = ray.get(done)
                except (RayActorError, OutOfMemoryError) as error:
                    result = self._after_crash(job, error)
                    if self._jobs:
                        self._start()
                else:
                    result = self._after_answer(job, answer)
                    self._idle.append(worker)
                self._assign()
                if result:
                    yield result
        finally:
            for worker in [*self._idle, *(worker for worker, _ in self._running.values())]:
                ray.kill(worker)

    def _start(self) -> None:
        worker = self.start_worker()
        self._running[worker.ready.remote()] = worker, None  # no job yet: the cluster may have no room for the worker

    def _assign(self) -> None:
        while self._jobs and self._idle:
            worker, job = self._idle.pop(), self._jobs.popleft()
            call = worker.score_part.remote(job.part) if job.image is None else worker.predict_image.remote(job.image)
            self._running[call] = worker, job

    def _after_answer(self, job: Job | None, answer: Any) -> PartResult | None:
        if job is None:
            self._failed_starts = 0
            return None
        return answer if job.image is None else self._add_row(job, answer)

    def _after_crash(self, job: Job | None, error: Exception) -> PartResult | None:
        if job is None:
            self._failed_starts += 1
            if getattr(error, "actor_init_failed", False) or self._failed_starts == ATTEMPTS:
                reason = str(error).strip().splitlines()[-1].strip()
                raise UserError(
                    f"Workers cannot start ({reason}): free memory or correct the installation, and start again."
                )
            return None
        if job.image is None:
            return self._split_part(job.part)
        if job.crashes + 1 < ATTEMPTS:
            self._jobs.appendleft(job._replace(crashes=job.crashes + 1))
            return None
        image = job.image
        path = printable(image.path)
        row = Row(path, None, None, self.threshold, CRASHED, False, image.size, image.modified, data_read=True)
        return self._add_row(job, row)

    def _split_part(self, reference: Any) -> PartResult | None:
        import ray

        part = ray.get(reference)
        if not part.images:  # it only removes rows
            return self.write(part, [])
        self._split[reference] = part, {}
        self._jobs.extendleft(Job(reference, index, image) for index, image in reversed([*enumerate(part.images)]))
        return None

    def _add_row(self, job: Job, row: Row) -> PartResult | None:
        """Keep an image's row; when all images of its part have one, write the part."""
        part, rows = self._split[job.part]
        rows[job.place] = row
        if len(rows) < len(part.images):
            return None
        del self._split[job.part]
        return self.write(part, [rows[index] for index in range(len(rows))])
