"""The images that still need a row, cut into parts: a worker scores one part and writes one file of rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from dfganext.data.discovery import Found, printable
from dfganext.scoring.rows import ScoredRows
from dfganext.scoring.stores import Listing

PART_IMAGES = 1024
"""Images that are scored again when their worker crashes, and rows per file: 10 million images are 10,000 files of about 30 kB."""


class Part(NamedTuple):
    """Images that are scored together, and the name of the file of their rows.

    replaces: the file exists; the new rows replace those of the same paths. removed: digests of further paths whose rows are
    removed from the file.
    """

    name: str
    images: Sequence[Found]
    replaces: bool = False
    removed: Sequence[bytes] = ()


class PartResult(NamedTuple):
    """Numbers of images of a part: scored, scored before (in a row that was replaced), and unreadable, whose row has an error.

    failure: why there are no rows, if so; a cause that other parts share, such as a full disk.
    """

    name: str
    scored: int = 0
    rescored: int = 0
    unreadable: int = 0
    failure: str = ""


class Plan:
    """Iterates over the parts of a listing that still need scoring, and counts images on the way.

    New images form new parts, with names that follow from their paths: the same images give the same parts, so two runs that
    overlap write the same files. Images whose row is outdated form one part per existing file, which replaces that file.

    total: images in the listing. kept: those with a valid row. unreadable: those of them whose row has an error. unversioned:
    those whose row has no size and time.
    """

    def __init__(self, listing: Listing, scored: ScoredRows, part_images: int) -> None:
        self.listing, self.scored, self.part_images = listing, scored, part_images
        self.total = self.kept = self.unreadable = self.unversioned = 0
        self._outdated: dict[int, list[Found]] = {}
        self._removed: dict[int, set[bytes]] = {}
        self._last = ""

    def __iter__(self) -> Iterator[Part]:
        new: list[Found] = []
        first = 0  # the place of new[0] in the listing
        while chunk := list(islice(self.listing.images, self.part_images)):
            state = self.scored.state_of(chunk)
            self.kept += int(np.sum(state.valid))
            self.unreadable += int(np.sum(state.unreadable))
            self.unversioned += int(np.sum(state.unversioned))
            self._remove(self.scored.folder_errors(list(self._entered(chunk))))
            for image, known, valid, file in zip(chunk, state.known, state.valid, state.file, strict=True):
                if not known:
                    first = first if new else self.total
                    new.append(image)
                elif not valid:
                    self._outdated.setdefault(file, []).append(image)
                    if len(self._outdated[file]) == self.scored.counts[file]:  # no further image can belong to it
                        yield self._replacement(file)
                self.total += 1
                if len(new) == self.part_images:
                    yield self._new_part(first, new)
                    new = []
        if new:
            yield self._new_part(first, new)
        self._remove(self.scored.duplicates())
        for file in sorted(self._outdated.keys() | self._removed.keys()):
            yield self._replacement(file)

    def _entered(self, images: Sequence[Found]) -> Iterator[str]:
        """Folders that contain these images and did not contain the previous ones."""
        for image in images:
            folder = os.path.dirname(image.path)  # noqa: PTH120 - of addresses too
            while folder not in ("", "/") and not self._last.startswith(f"{folder}/"):
                yield folder
                folder = os.path.dirname(folder)  # noqa: PTH120
            self._last = image.path

    def _remove(self, rows: Iterator[tuple[int, bytes]]) -> None:
        for file, digest in rows:
            self._removed.setdefault(file, set()).add(digest)

    def _replacement(self, file: int) -> Part:
        images, removed = self._outdated.pop(file, []), self._removed.pop(file, set())
        return Part(self.scored.names[file], images, True, sorted(removed))

    def _new_part(self, first: int, images: Sequence[Found]) -> Part:
        content = hashlib.sha256("\0".join(printable(image.path) for image in images).encode()).hexdigest()[:16]
        return Part(f"part-{first // self.part_images:08d}-{content}.parquet", images)
