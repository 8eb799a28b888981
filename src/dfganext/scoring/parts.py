"""The images that still need a row, cut into parts: a worker scores one part and writes one file of rows."""

from __future__ import annotations

import hashlib
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

    replaces: the file exists; the new rows replace those of the same paths.
    """

    name: str
    images: Sequence[Found]
    replaces: bool = False


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

    total: images in the listing. kept: those with a valid row. unreadable: those of them whose row has an error.
    """

    def __init__(self, listing: Listing, scored: ScoredRows, part_images: int) -> None:
        self.listing, self.scored, self.part_images = listing, scored, part_images
        self.total = self.kept = self.unreadable = 0

    def __iter__(self) -> Iterator[Part]:
        new: list[Found] = []
        first = 0  # the place of new[0] in the listing
        outdated: dict[int, list[Found]] = {}  # by file
        while chunk := list(islice(self.listing.images, self.part_images)):
            state = self.scored.state_of(chunk)
            self.kept += int(np.sum(state.valid))
            self.unreadable += int(np.sum(state.unreadable))
            for image, known, valid, file in zip(chunk, state.known, state.valid, state.file, strict=True):
                if not known:
                    first = first if new else self.total
                    new.append(image)
                elif not valid:
                    outdated.setdefault(file, []).append(image)
                self.total += 1
                if len(new) == self.part_images:
                    yield self._new_part(first, new)
                    new = []
        if new:
            yield self._new_part(first, new)
        for file, images in sorted(outdated.items()):
            yield Part(self.scored.names[file], images, replaces=True)

    def _new_part(self, first: int, images: Sequence[Found]) -> Part:
        content = hashlib.sha256("\0".join(printable(image.path) for image in images).encode()).hexdigest()[:16]
        return Part(f"part-{first // self.part_images:08d}-{content}.parquet", images)
