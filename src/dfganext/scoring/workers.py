"""What runs in Ray's processes: a worker scores a part and writes its rows, or predicts one image alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from dfganext.data.discovery import BATCH_BYTES, BATCH_FILES, Found, Unread, printable
from dfganext.errors import one_line
from dfganext.runtime import batches_by_bytes, map_ordered
from dfganext.scoring import model
from dfganext.scoring.parts import Part, PartResult
from dfganext.scoring.rows import Row, to_parquet
from dfganext.scoring.stores import Folder

if TYPE_CHECKING:
    from dfganext.inference.detector import Detector


class Writer(NamedTuple):
    """Writes the rows of parts to a folder.

    strict: a new part none of whose images can be read is a failure, and nothing is written: over a network, and on machines
    that may lack a mount, the cause is probably not the images.
    """

    folder: Folder
    version: str
    strict: bool

    def write(self, part: Part, rows: Sequence[Row]) -> PartResult:
        """Write a part's file. What the user can correct is returned as a failure."""
        if self.strict and not part.replaces and not any(row.data_read for row in rows):
            return PartResult(part.name, failure=f"{rows[0].path} {rows[0].error}, like all images after it")
        try:
            old = self.folder.read(part.name) if part.replaces else None
            self.folder.write(part.name, to_parquet(rows, self.version, old))
        except (OSError, pa.ArrowException) as error:
            return PartResult(
                part.name, failure=f"{self.folder.name}/{part.name} cannot be written ({one_line(error)})"
            )
        rescored = len(rows) if part.replaces else 0
        return PartResult(part.name, len(rows), rescored, sum(row.error is not None for row in rows))


class Worker:
    """A Ray actor with a detector of its own.

    Args:
        files: a `Model`'s files, as arrays of bytes.
        read: a `Listing`'s.
        threads: files to read at a time.
        writer: writes the rows.
    """

    def __init__(self, files: Any, read: Callable[[str], bytes | Unread], threads: int, writer: Writer) -> None:
        self.files = files
        self.read, self.threads, self.writer = read, threads, writer

    def ready(self) -> None:
        """Load the detector. UserError if that cannot be done."""
        import torch

        torch.set_num_threads(1)  # a worker has one core
        self.detector = model.detector_of(self.files)

    def score_part(self, part: Part) -> PartResult:
        """Predict a part's images and write their rows."""
        return self.writer.write(part, list(predict_images(self.detector, part.images, self.read, self.threads)))

    def predict_image(self, image: Found) -> Row:
        """The row of one image, which is not written."""
        (row,) = predict_images(self.detector, [image], self.read)
        return row


def predict_images(
    detector: Detector, images: Sequence[Found], read: Callable[[str], bytes | Unread], threads: int = 1
) -> Iterator[Row]:
    """One row per image, in order; the next batch is read, `threads` files at a time, while the detector predicts one."""
    with ThreadPoolExecutor(threads) as pool:

        def read_batch(batch: Sequence[Found]) -> list[bytes | Unread]:
            return list(pool.map(read, [image.path for image in batch]))

        batches = list(batches_by_bytes(images, lambda image: image.size, BATCH_FILES, BATCH_BYTES))
        for batch, contents in zip(batches, map_ordered(read_batch, batches, workers=1, limit=2), strict=True):
            yield from _rows(detector, batch, contents)


def _rows(detector: Detector, images: Sequence[Found], contents: Sequence[bytes | Unread]) -> Iterator[Row]:
    encoded = [data.reason if isinstance(data, Unread) else data for data in contents]
    for image, data, prediction in zip(images, contents, detector.predict(encoded), strict=True):
        yield Row(
            printable(image.path),
            prediction.label,
            prediction.p_fake,
            prediction.threshold,
            prediction.decision,
            prediction.reason,
            prediction.error,
            retry=isinstance(data, Unread) and data.temporary,
            size=image.size,
            modified=image.modified,
            data_read=not isinstance(data, Unread),
        )
