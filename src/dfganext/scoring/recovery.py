"""Runs parts on workers, and finds the images that crash their worker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from queue import SimpleQueue
from typing import Any

from dfganext.data.discovery import Found, printable
from dfganext.errors import UserError
from dfganext.scoring.parts import Part, PartResult
from dfganext.scoring.rows import Row

ATTEMPTS = 3
"""Worker crashes on one image alone, after which the image gets a row with an error; also, of starting a worker."""

CRASHED = "crashes the process that decodes it"
"""The error of such an image."""


class PartRunner:
    """Runs parts on Ray actors, each served by a thread of this process; a worker that crashes is replaced.

    A part whose worker crashed is predicted image by image, so an image that crashes its worker affects no other image, and
    written in this process.

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
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

        self.ray, self.crashes, self.failure = ray, (RayActorError, OutOfMemoryError), RayTaskError
        self.start_worker, self.workers, self.threshold, self.write = start_worker, workers, threshold, write
        self._waiting: SimpleQueue[Any] = SimpleQueue()  # references to parts; None ends a thread
        self._results: SimpleQueue[PartResult | BaseException] = SimpleQueue()
        self._started: list[Any] = []
        self._lock = threading.Lock()
        self._ended = False

    def run(self, parts: Sequence[Any]) -> Generator[PartResult, None, None]:
        """The results of parts, given as references, in the order in which they are done.

        Raises:
            UserError: workers cannot start, or cannot load the model.
        """
        threads = min(self.workers, len(parts))
        for part in [*parts, *[None] * threads]:
            self._waiting.put(part)
        for _ in range(threads):
            threading.Thread(target=self._serve, daemon=True).start()
        try:
            for _ in parts:
                result = self._results.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            with self._lock:
                self._ended = True
            for worker in self._started:
                self.ray.kill(worker)

    def _serve(self) -> None:
        """Give parts to one worker at a time. It takes a part once it runs: the cluster may have no room for it."""
        try:
            worker = self._start()
            for part in iter(self._waiting.get, None):
                try:
                    result = self.ray.get(worker.score_part.remote(part))
                except self.crashes:
                    worker, result = self._one_by_one(self.ray.get(part))
                self._results.put(result)
        except BaseException as error:  # raised by `run`
            self._results.put(error)

    def _start(self) -> Any:
        """A new worker, once it runs."""
        for _ in range(ATTEMPTS):
            with self._lock:
                if self._ended:
                    raise RuntimeError("the run has ended")
                worker = self.start_worker()
                self._started.append(worker)
            try:
                self.ray.get(worker.ready.remote())
            except self.crashes as error:
                reason = str(error).strip().splitlines()[-1].strip()
            except self.failure as error:
                raise error.cause from None  # as the worker raised it: Ray's text is a traceback
            else:
                return worker
        raise UserError(f"Workers cannot start ({reason}): free memory or correct the installation, and start again.")

    def _one_by_one(self, part: Part) -> tuple[Any, PartResult]:
        """A new worker, and the result of the part, each of whose images is predicted alone."""
        worker = self._start()
        rows = []
        for image in part.images:
            for _ in range(ATTEMPTS):
                try:
                    rows.append(self.ray.get(worker.predict_image.remote(image)))
                    break
                except self.crashes:
                    worker = self._start()
            else:
                rows.append(self._crashed(image))
        return worker, self.write(part, rows)

    def _crashed(self, image: Found) -> Row:
        path = printable(image.path)
        return Row(
            path, None, None, self.threshold, None, None, CRASHED, False, image.size, image.modified, data_read=True
        )
