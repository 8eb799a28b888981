"""A folder of images as the download stage sees it: every file in it, its class, and what is refused at sight."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dfganext import labels

JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"})

# With `dvc config cache.type symlink` every file of data/ is a link to such an object, outside the tree but DVC's own.
_DVC_OBJECT = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")


@dataclass(frozen=True)
class Reject:
    """A file that cannot be used: where it came from, the reason in a few fixed words, and the particulars."""

    source: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Tree:
    """A folder to scan.

    root is where the files are and name what the user knows it as. above is the place of the folder within its source, as when
    it was extracted from train/real/part1.zip: the class may be told there. skip holds paths, relative to root, of files that
    were opened as archives. Links may point anywhere in `within` (None: in root).
    """

    root: Path
    name: str
    above: PurePosixPath = field(default_factory=PurePosixPath)
    skip: frozenset[str] = frozenset()
    within: Path | None = None

    def source(self, path: PurePosixPath) -> str:
        """The name of a file in messages and tables: printable whatever bytes the file system holds."""
        return printable(str(PurePosixPath(self.name) / path))


@dataclass(frozen=True)
class Found:
    """A regular file: `path` is where it stands in its source, `file` what to open."""

    path: PurePosixPath
    file: Path
    source: str


def printable(text: str) -> str:
    """Text that fits on one line of any table or message: control characters become escapes such as \\r, \\x1b and \\u2028.

    So do the bytes of a file name that are not UTF-8 (\\udcXX).
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: ascii(match[0])[1:-1], text)


def shortened(name: str, length: int) -> str:
    """The beginning of a file's name, of `length` bytes at most, not cut within a letter of UTF-8."""
    encoded = os.fsencode(name)
    while length < len(encoded) and encoded[length] & 0xC0 == 0x80:
        length -= 1
    return os.fsdecode(encoded[:length])


def label_of(path: PurePosixPath) -> str | None:
    """ "real" or "fake", after the nearest folder above a file that is called so, in any case; None without one."""
    return next((part.lower() for part in reversed(path.parts[:-1]) if part.lower() in labels.NAMES), None)


def walk(tree: Tree) -> Iterator[Found | Reject]:
    """Every file below a tree, in the same order on every machine, or the reason why it is not read.

    Links are followed where they stay inside the tree. A folder reached by a link is read once for each class that the way to it
    tells, so no maze of links takes for ever.
    """
    root = tree.root.resolve()
    within = (tree.within or tree.root).resolve()
    visited: set[tuple[Path, str | None]] = set()
    linked: list[tuple[PurePosixPath, Path]] = []

    def inside(target: Path) -> bool:
        return target.is_relative_to(within) or _DVC_OBJECT.search(target.as_posix()) is not None

    def folder(here: PurePosixPath, place: Path) -> Iterator[Found | Reject]:
        visited.add((place, label_of(tree.above / here / "file")))
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            yield Reject(tree.source(here), "unreadable", f"the folder cannot be listed: {error.strerror}")
            return
        for entry in entries:
            path = here / entry.name
            if str(path) in tree.skip:
                continue
            if entry.name.startswith(".") or entry.name.lower() in JUNK:
                yield Reject(tree.source(path), "not data", "hidden files and what operating systems leave behind")
            elif entry.is_symlink():
                yield from link(path, Path(entry.path))
            elif entry.is_dir():
                yield from folder(path, Path(entry.path))
            else:
                yield regular(path, Path(entry.path))

    def link(path: PurePosixPath, place: Path) -> Iterator[Found | Reject]:
        try:
            target = place.resolve(strict=True)
        except (OSError, RuntimeError):
            yield Reject(tree.source(path), "link", "it leads nowhere or in a circle")
            return
        if not inside(target):
            yield Reject(tree.source(path), "link", "it leads out of the tree: put a copy in its place")
        elif place.is_relative_to(target):
            yield Reject(tree.source(path), "link", "it leads back to a folder that it is in")
        elif target.is_dir():
            linked.append((path, target))
        else:
            yield regular(path, target)

    def regular(path: PurePosixPath, file: Path) -> Found | Reject:
        try:
            mode = file.stat().st_mode
        except OSError as error:
            return Reject(tree.source(path), "unreadable", f"the file cannot be read: {error.strerror}")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            return Reject(tree.source(path), "not an image", "a pipe, a socket or a device")
        return Found(tree.above / path, file, tree.source(path))

    yield from folder(PurePosixPath(), root)
    while linked:
        linked.sort(reverse=True)
        path, target = linked.pop()
        if (target, label_of(tree.above / path / "file")) in visited:
            yield Reject(tree.source(path), "link", "it leads to a folder that is read already")
        else:
            yield from folder(path, target)
