"""The images that have no row yet, cut into parts: what a worker does in one go and writes as one file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dfganext.data.trees import printable
from dfganext.inputs import Found
from dfganext.scoring.rows import Scored
from dfganext.stores import Listing

if TYPE_CHECKING:
    import pyarrow as pa

PART_IMAGES = 1024
"""What a killed worker loses, and what a file of rows holds: 10 million images are 10,000 files of some 30 kB."""


class Part(NamedTuple):
    """Images that are judged together, and the name of the file that their rows go to."""

    name: str
    images: Sequence[Found]

    def as_block(self) -> pa.Table:
        """The part as a block of Ray Data, one row; paths as bytes, since some file names are no text."""
        import pyarrow as pa

        return pa.table(
            {
                "name": [self.name],
                "paths": pa.array([[os.fsencode(image.path) for image in self.images]], pa.list_(pa.binary())),
                "sizes": pa.array([[image.size for image in self.images]], pa.list_(pa.int64())),
            }
        )

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Part:
        """The part of such a block's row."""
        pairs = zip(row["paths"], row["sizes"], strict=True)
        return cls(row["name"], [Found(os.fsdecode(path), size) for path, size in pairs])


class Done(NamedTuple):
    """What happened to a part: the images that got a row, those of them with an error; or why there are no rows, if so.

    failure: something that other parts will suffer from as well, such as a full disk. lost: it kills its workers.
    """

    name: str
    images: int = 0
    unread: int = 0
    failure: str = ""
    lost: bool = False


class Plan:
    """The parts that are left to do; counts, as it is gone through, what there is and what is done.

    What is done is taken off image by image, so that images may have joined or left IN since. With the same images, the same
    parts come out as before: a run that is still writing cannot get in the way of the next one.
    """

    def __init__(self, listing: Listing, scored: Scored, part_images: int) -> None:
        self.listing, self.scored, self.part_images = listing, scored, part_images
        self.total = self.before = self.unread_before = 0
        self.ends: dict[str, tuple[str, str]] = {}

    def __iter__(self) -> Iterator[Part]:
        left: list[Found] = []
        started = 0
        images = self.listing.images
        while chunk := list(islice(images, self.part_images)):
            known, unread = self.scored.among(chunk)
            self.before += int(np.sum(known))
            self.unread_before += unread
            for image, done in zip(chunk, known, strict=True):
                if not done:
                    started = started if left else self.total
                    left.append(image)
                self.total += 1
                if len(left) == self.part_images:
                    yield self._part(started, left)
                    left = []
        if left:
            yield self._part(started, left)

    def _part(self, started: int, images: Sequence[Found]) -> Part:
        paths = [printable(image.path) for image in images]
        content = hashlib.sha256("\0".join(paths).encode()).hexdigest()[:16]
        name = f"part-{started // self.part_images:08d}-{content}.parquet"
        self.ends[name] = (paths[0], paths[-1])
        return Part(name, images)
