"""What runs in Ray's processes: judging a part, so that neither a broken image nor a death loses a row or doubles one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from dfganext.data.discovery import BATCH_BYTES, BATCH_FILES, Found, Unread, printable
from dfganext.errors import one_line
from dfganext.scoring import model
from dfganext.scoring.parts import Done, Part
from dfganext.scoring.rows import Row, to_parquet
from dfganext.scoring.stores import Folder

if TYPE_CHECKING:
    import pyarrow as pa

    from dfganext.inference.detector import Detector

ATTEMPTS = 5
"""Workers that may die of a part before it is given up; those that an image was found guilty of do not count."""

KILLER = "kills the process that decodes it"


class Watch:
    """An actor beside the workers that remembers, of every part in work, how the attempts at it ended."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {}

    def begin(self, name: str) -> list[int]:
        """Note an attempt at a part. Where each earlier one was last seen: the image's place, or -1."""
        attempts = self.seen.setdefault(name, [])
        attempts.append(-1)
        return attempts[:-1]

    def at(self, name: str, place: int) -> None:
        """Note that the present attempt has come to the image at this place."""
        self.seen[name][-1] = place

    def end(self, name: str) -> None:
        """Forget a part that is done."""
        self.seen.pop(name, None)


class Worker:
    """Judges parts and writes their rows; Ray Data makes one in each of its processes.

    Args:
        files: reference to a `Model`'s files, as arrays of bytes.
        version: what the rows say of the model.
        read: a `Listing`'s.
        strict: where none of a new part's images can be read, it is for a reason that has nothing to do with them, and there
            shall be no rows that say so.
        threads: reads at a time.
        folder: where the rows go.
        watch: handle of the `Watch`.
    """

    def __init__(
        self,
        files: Any,
        version: str,
        read: Callable[[str], bytes | Unread],
        strict: bool,
        threads: int,
        folder: Folder,
        watch: Any,
    ) -> None:
        import ray
        import torch

        torch.set_num_threads(1)  # a worker has one core
        self.detector = model.detector_of(ray.get(files))
        self.version, self.read, self.strict, self.threads = version, read, strict, threads
        self.folder, self.watch, self.wait = folder, watch, ray.get

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Do the parts of a table as `Part.as_block` makes them (as it is called, one); a `Done` each."""
        import pyarrow as pa

        done = [self._do(part) for part in map(Part.of_row, batch.to_pylist())]
        return pa.table({name: [getattr(one, name) for one in done] for name in Done._fields})

    def _do(self, part: Part) -> Done:
        """What the user can put right is told, not raised: Ray would bury it in a traceback."""
        import pyarrow as pa

        deaths = self.wait(self.watch.begin.remote(part.name))
        guilty = {place for place in deaths if place >= 0 and deaths.count(place) > 1}
        if len(deaths) - 2 * len(guilty) >= ATTEMPTS:
            return Done(part.name, lost=True)
        if deaths:
            rows = list(self._one_by_one(part, guilty))
        else:
            rows = list(judge_images(self.detector, part.images, self.read, self.threads))
        if self.strict and not part.replaces and not any(row.data_read for row in rows):
            return Done(part.name, failure=f"{rows[0].path} {rows[0].error}, and so does all that follows it")
        try:
            before = self.folder.read(part.name) if part.replaces else None
            self.folder.write(part.name, to_parquet(rows, self.version, before, part.without))
        except (OSError, pa.ArrowException) as error:
            return Done(part.name, failure=f"{self.folder.name}/{part.name} cannot be written ({one_line(error)})")
        self.wait(self.watch.end.remote(part.name))
        return Done(part.name, len(rows), sum(row.error is not None for row in rows), again=part.replaces)

    def _one_by_one(self, part: Part, guilty: set[int]) -> Iterator[Row]:
        """Rows of a part that workers died of: should it happen again, it is known at which image."""
        for place, image in enumerate(part.images):
            if place in guilty:
                threshold = self.detector.threshold
                yield Row(printable(image.path), None, None, threshold, KILLER, False, image.size, image.modified, True)
            else:
                self.wait(self.watch.at.remote(part.name, place))
                yield from judge_images(self.detector, [image], self.read)


def judge_images(
    detector: Detector, images: Sequence[Found], read: Callable[[str], bytes | Unread], threads: int = 1
) -> Iterator[Row]:
    """A row an image, in order; the next batch is read, `threads` files at a time, while one is judged."""
    with ThreadPoolExecutor(threads) as pool:
        coming = ([(image, pool.submit(read, image.path)) for image in batch] for batch in _batches(images))
        now = next(coming, None)
        while now:
            ahead = next(coming, None)
            yield from _predict(detector, [(image, future.result()) for image, future in now])
            now = ahead


def _batches(images: Sequence[Found]) -> Iterator[list[Found]]:
    batch: list[Found] = []
    held = 0
    for image in images:
        if batch and (len(batch) == BATCH_FILES or held + image.size > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(image)
        held += image.size
    if batch:
        yield batch


def _predict(detector: Detector, batch: Sequence[tuple[Found, bytes | Unread]]) -> Iterator[Row]:
    encoded = [data if isinstance(data, bytes) else data.reason for _, data in batch]
    for (image, data), verdict in zip(batch, detector.predict(encoded), strict=True):
        read = isinstance(data, bytes)
        yield Row(
            printable(image.path),
            verdict.label,
            verdict.p_fake,
            verdict.threshold,
            verdict.error,
            isinstance(data, Unread) and data.temporary,
            image.size,
            image.modified,
            read,
        )
