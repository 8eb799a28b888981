"""The images that have no row yet, cut into parts: what a worker does in one go and writes as one file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dfganext.data.discovery import Found, printable
from dfganext.scoring.rows import Scored
from dfganext.scoring.stores import Listing

if TYPE_CHECKING:
    import pyarrow as pa

PART_IMAGES = 1024
"""What a killed worker loses, and what a file of rows holds: 10 million images are 10,000 files of some 30 kB."""


class Part(NamedTuple):
    """Images that are judged together, and the name of the file that their rows go to.

    replaces: the file is there, and the rows take the place of those of the same paths. without: digests of further paths whose
    rows are to leave it.
    """

    name: str
    images: Sequence[Found]
    replaces: bool = False
    without: Sequence[bytes] = ()

    def as_block(self) -> pa.Table:
        """The part as a block of Ray Data, one row; paths as bytes, since some file names are no text."""
        import pyarrow as pa

        return pa.table(
            {
                "name": [self.name],
                "paths": pa.array([[os.fsencode(image.path) for image in self.images]], pa.list_(pa.binary())),
                "sizes": pa.array([[image.size for image in self.images]], pa.list_(pa.int64())),
                "modified": pa.array([[image.modified for image in self.images]], pa.list_(pa.int64())),
                "replaces": [self.replaces],
                "without": pa.array([list(self.without)], pa.list_(pa.binary())),
            }
        )

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Part:
        """The part of such a block's row."""
        columns = zip(row["paths"], row["sizes"], row["modified"], strict=True)
        images = [Found(os.fsdecode(path), size, modified) for path, size, modified in columns]
        return cls(row["name"], images, row["replaces"], row["without"])


class Done(NamedTuple):
    """What happened to a part: the images that got a row, those of them with an error; or why there are no rows, if so.

    failure: something that other parts will suffer from as well, such as a full disk. lost: it kills its workers. again: the
    images had a row before.
    """

    name: str
    images: int = 0
    unread: int = 0
    failure: str = ""
    lost: bool = False
    again: bool = False


class Plan:
    """The parts that are left to do; counts, as it is gone through, what there is and what is done.

    What is done is taken off image by image, so that images may have joined or left IN since. With the same images, the same
    parts come out as before: a run that is still writing cannot get in the way of the next one. Images whose row does not hold
    any more are judged by the file that has it, for that file to be replaced in one go. unversioned: how
    many of these have a row that does not say of which content it is.
    """

    def __init__(self, listing: Listing, scored: Scored, part_images: int) -> None:
        self.listing, self.scored, self.part_images = listing, scored, part_images
        self.total = self.before = self.unread_before = self.unversioned = 0
        self.ends: dict[str, tuple[str, str]] = {}
        self._pending: dict[int, list[Found]] = {}
        self._without: dict[int, set[bytes]] = {}
        self._last = ""

    def __iter__(self) -> Iterator[Part]:
        left: list[Found] = []
        started = 0
        images = self.listing.images
        while chunk := list(islice(images, self.part_images)):
            state = self.scored.among(chunk)
            self.before += int(np.sum(state.done))
            self.unread_before += int(np.sum(state.unread))
            self.unversioned += int(np.sum(state.unversioned))
            self._drop(self.scored.superfluous(list(self._entered(chunk))))
            for image, known, done, file in zip(chunk, state.known, state.done, state.file, strict=True):
                if not known:
                    started = started if left else self.total
                    left.append(image)
                elif not done and self._postpone(image, int(file)):
                    yield self._replacement(int(file))
                self.total += 1
                if len(left) == self.part_images:
                    yield self._part(started, left)
                    left = []
        if left:
            yield self._part(started, left)
        self._drop(self.scored.doubles())
        for file in sorted(self._pending.keys() | self._without.keys()):
            yield self._replacement(file)

    def _entered(self, images: Sequence[Found]) -> Iterator[str]:
        """Folders of images, as they come for the first time in the order of the paths."""
        for image in images:
            folder = os.path.dirname(image.path)  # noqa: PTH120 - of addresses too
            while folder not in ("", "/") and not self._last.startswith(f"{folder}/"):
                yield folder
                folder = os.path.dirname(folder)  # noqa: PTH120
            self._last = image.path

    def _postpone(self, image: Found, file: int) -> bool:
        """Keep an image until all of its file are known; whether they are, since all rows of the file are to be replaced."""
        self._pending.setdefault(file, []).append(image)
        return len(self._pending[file]) == self.scored.counts[file]

    def _drop(self, rows: Iterator[tuple[int, bytes]]) -> None:
        for file, digest in rows:
            self._without.setdefault(file, set()).add(digest)

    def _replacement(self, file: int) -> Part:
        images, name = self._pending.pop(file, []), self.scored.names[file]
        self.ends[name] = (printable(images[0].path), printable(images[-1].path)) if images else (name, name)
        return Part(name, images, True, sorted(self._without.pop(file, ())))

    def _part(self, started: int, images: Sequence[Found]) -> Part:
        paths = [printable(image.path) for image in images]
        content = hashlib.sha256("\0".join(paths).encode()).hexdigest()[:16]
        name = f"part-{started // self.part_images:08d}-{content}.parquet"
        self.ends[name] = (paths[0], paths[-1])
        return Part(name, images)
