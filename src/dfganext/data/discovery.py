"""Finds images on the local disk, for download, predict and score, and reads their bytes.

predict and score take images only. download takes every file of a source, and lists each file that it refuses.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dfganext import labels
from dfganext.errors import UserError

MAX_FILE_BYTES = 2**29
TOO_LARGE = f"more than {MAX_FILE_BYTES // 2**20} MiB"

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jp2", ".ppm", ".pgm", ".pbm")
"""predict and score read a file in a folder if its name ends in one of these, or if its first bytes are an image format's."""

BEGINNING_BYTES = 256

_BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG|RIFF....WEBP|GIF8[79]a|II\*\0|MM\0\*|BM.{4}\0{4}|\0{3}\x0cjP  |\xffO\xffQ|P[1-6]\s+(#.*\n\s*)?\d+\s+\d+\s",
    re.DOTALL,
)

BATCH_FILES, BATCH_BYTES = 32, 64 * 2**20
"""A batch of images ends at either limit, so that memory use does not grow with the number of images."""

NOT_DATA = "not data"
"""The reason of a Reject for files that are not meant to be images; `dfganext evaluate` does not report them."""

JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"})

# characters that end a line or control a terminal
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# With `dvc config cache.type symlink` every file of data/ is a link to a file of DVC's cache, which is outside the tree.
_DVC_OBJECT = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")


class Found(NamedTuple):
    """An image file: its path, its size in bytes, and its modification time in ns since 1970 (None: unknown)."""

    path: str
    size: int
    modified: int | None = None


class Unread(NamedTuple):
    """Why a file could not be read. temporary: the reason may pass, such as an I/O error or a missing permission."""

    reason: str
    temporary: bool


class SourceFile(NamedTuple):
    """A regular file of a source: its path within the source, the file to open, and its printable name in messages."""

    path: PurePosixPath
    file: Path
    source: str


class Reject(NamedTuple):
    """A file that download cannot use: its printable name, a fixed phrase for the reason, and the details."""

    source: str
    reason: str
    detail: str


def printable(name: str) -> str:
    """A file's name as one line of UTF-8: control characters and bytes that are not UTF-8 become escapes such as \\r or \\udcff."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return _CONTROL_CHARACTERS.sub(lambda found: ascii(found[0])[1:-1], text)


def shortened(name: str, length: int) -> str:
    """The first bytes of a file's name, at most `length`, without what is not UTF-8."""
    return os.fsencode(name)[:length].decode(errors="ignore")


def label_of(path: PurePosixPath) -> str | None:
    """ "real" or "fake": the name, in any case, of the nearest folder above the file that is called so; None without one."""
    return next((part.lower() for part in reversed(path.parts[:-1]) if part.lower() in labels.NAMES), None)


def find_images(paths: Iterable[str]) -> list[Path]:
    """The given files and all images below the given folders, each once, sorted by path.

    Below a folder, links to files are followed; links to folders are skipped, because they may form a loop.

    Raises:
        UserError: a path does not exist or cannot be accessed, or there is no image.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        if not exists(path):
            raise UserError(f"{path} does not exist: give files or folders that do.")
        if path.is_dir():
            found.update(Path(image.path) for image in images_below(path))
        else:
            found.add(path)
    if not found:
        raise UserError(
            f"There is no image in {', '.join(map(str, paths))}: give files, or folders with images in them."
        )
    return sorted(found, key=str)


def exists(path: Path) -> bool:
    """Whether the file or folder exists. UserError if the system cannot tell."""
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"{path} cannot be accessed ({error.strerror}): give another path.") from None


def images_below(folder: Path) -> Iterator[Found]:
    """Every image below a folder, at any depth, sorted by path.

    A folder that cannot be listed and a dangling link named like an image are yielded too; `read` then gives the reason.
    """
    return in_order(f"{str(folder).rstrip('/')}/", _local_images)


def in_order(root: str, entries: Callable[[str], Iterable[Found]]) -> Iterator[Found]:
    """Every file below a folder, sorted by path; memory holds the entries of one folder and of those above it.

    Args:
        root: the folder, with a slash at its end.
        entries: lists a folder; paths of folders end in a slash, which sorts a/b between a-b and a0b. If it raises OSError, the
            folder itself is yielded.
    """
    pending = [Found(root, 0)]  # the last one is next
    while pending:
        here = pending.pop()
        if not here.path.endswith("/"):
            yield here
            continue
        try:
            pending += sorted(entries(here.path), reverse=True)
        except OSError:
            yield Found(here.path.rstrip("/"), 0)


def named_like_image(path: str) -> bool:
    """Whether a file's suffix is that of an image format."""
    return path.lower().endswith(SUFFIXES)


def begins_like_image(beginning: bytes) -> bool:
    """Whether a file's first bytes (at least 32, or all) are those of an image format."""
    return _BEGINNINGS.match(beginning) is not None


def is_like_image(path: str | Path) -> bool:
    """Whether a file is an image's by its suffix or by its first bytes."""
    if named_like_image(str(path)):
        return True
    try:
        with Path(path).open("rb") as stream:
            return begins_like_image(stream.read(BEGINNING_BYTES))
    except OSError:
        return False


def read(path: str | Path) -> bytes | Unread:
    """A file's bytes, or the reason why it cannot be read."""
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            next(path.iterdir(), None)  # raises the error of a folder that cannot be listed
        if not stat.S_ISREG(status.st_mode):
            return Unread("not a regular file", temporary=False)
        if status.st_size > MAX_FILE_BYTES:
            return Unread(TOO_LARGE, temporary=False)
        return path.read_bytes()
    except OSError as error:
        return Unread(f"cannot be read ({error.strerror})", temporary=True)


def found_at(path: str, status: os.stat_result) -> Found:
    """A local file with the size and time of its status."""
    return Found(path, status.st_size, status.st_mtime_ns)


def _local_images(folder: str) -> Iterator[Found]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield Found(f"{entry.path}/", 0)
                continue
            try:
                status = entry.stat()
            except OSError:  # a dangling link
                if named_like_image(entry.name):
                    yield Found(entry.path, 0)
                continue
            if stat.S_ISREG(status.st_mode) and is_like_image(entry.path):
                yield found_at(entry.path, status)


def files_of_source(
    root: Path, name: str, above: PurePosixPath | None = None, within: Path | None = None
) -> tuple[list[SourceFile], list[Reject]]:
    """Every usable file below a folder of a source, and every file and folder refused, with the reason.

    Args:
        root: the folder.
        name: the user's name for it.
        above: the path of the folder within its source if that is not the root, as of an archive in train/real.
        within: the folder that links to files may not leave (default: root).
    """
    within = (within or root).resolve()
    files: list[SourceFile] = []
    rejects: list[Reject] = []
    pending = [root]
    while pending:
        folder = pending.pop()
        place = PurePosixPath(folder.relative_to(root))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            detail = f"the folder cannot be listed ({error.strerror})"
            rejects.append(Reject(printable(str(PurePosixPath(name, place))), "unreadable", detail))
            continue
        for entry in entries:
            source = printable(str(PurePosixPath(name, place, entry.name)))
            problem = _problem_of(entry, within)
            if problem:
                rejects.append(Reject(source, *problem))
            elif entry.is_dir():
                pending.append(Path(entry.path))
            else:
                path = PurePosixPath(above or "", place, entry.name)
                files.append(SourceFile(path, Path(entry.path), source))
    return files, rejects


def _problem_of(entry: os.DirEntry[str], within: Path) -> tuple[str, str] | None:
    """Reason and detail if a file or folder of a source is refused."""
    if entry.name.startswith(".") or entry.name.lower() in JUNK:
        return NOT_DATA, "hidden files and files of the operating system"
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        return "unreadable", f"cannot be read ({error.strerror})"
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if stat.S_ISDIR(mode):
            return "link", "it leads to a folder: put the folder in its place"
        if not Path(target).is_relative_to(within) and not _DVC_OBJECT.search(target):
            return "link", "it leads out of the source: put a copy in its place"
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would block
        return "not an image", "a pipe, a socket or a device"
    return None
