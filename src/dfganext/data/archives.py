"""Unpacks zip and tar archives safely: nothing is written outside the target folder, and no archive fills the disk."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, NoReturn, Self

from tqdm import tqdm

from dfganext.data.discovery import Reject, printable
from dfganext.errors import UserError, one_line

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

MAX_BYTES = 256 * 2**30
MAX_RATIO = 200
RATIO_COUNTS_ABOVE = 2**30
"""An archive may unpack to MAX_BYTES, and, above RATIO_COUNTS_ABOVE bytes, to MAX_RATIO times its own size."""

MAX_PARTS = 100
"""Folders and file in a member's name: deeper ones would exhaust the stack of the functions that remove them."""

_UNUSABLE_NAME = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)

_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

MAX_HEADER_BYTES = 2**20
"""Of an extended header of a tar, which holds a long name and the like, and of all its global headers: tarfile keeps them in memory."""

MEMBER_BYTES = 512
"""What a member counts besides its content, so that empty ones have a limit too."""

MAX_NAME = 4096
"""Characters of a member's name in messages."""


class _TarInfo(tarfile.TarInfo):
    """Refuses members that would take any amount of memory or time before their content is read. One subclass per archive."""

    global_bytes = 0

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0:
            raise ValueError("a negative size")
        if info.type == tarfile.XGLTYPE:
            cls.global_bytes += info.size
        if info.type in _EXTENDED and max(info.size, cls.global_bytes) > MAX_HEADER_BYTES:
            raise ValueError(f"headers of more than {MAX_HEADER_BYTES:,} bytes")
        return info

    def _refuse(self, *arguments: object) -> NoReturn:
        raise ValueError("a sparse file, whose map of blocks has no limit")

    _proc_sparse = _proc_gnusparse_10 = _refuse


class _Member(NamedTuple):
    """A file, link or device in an archive. size: bytes according to the archive; `open` gives no more than that."""

    name: str
    size: int
    is_file: bool
    open: Callable[[], IO[bytes]]


def stem(name: str) -> str | None:
    """The name of an archive without its suffix, or None if the name is not an archive's."""
    suffix = max((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), key=len, default=None)
    return name[: -len(suffix)] or None if suffix else None


def extract(archive: Path, target: Path, name: str | None = None) -> list[Reject]:
    """Unpack a zip or a tar (plain, gz, bz2, xz), recognised by content, into a folder.

    Only regular files are written, with default permissions. Members that would land elsewhere, links (hard links too), devices,
    encrypted members and damaged members of a zip are left out.

    Args:
        archive: the file.
        target: the folder to fill, empty or missing.
        name: the archive's name in messages (default: its path).

    Returns:
        The members left out, in the archive's order, each with the reason.

    Raises:
        UserError: the file is neither a zip nor a tar, is damaged as a whole, exceeds a limit, or the disk is full.
    """
    name = name or str(archive)
    size = archive.stat().st_size
    limit = min(MAX_BYTES, max(RATIO_COUNTS_ABOVE, MAX_RATIO * size))
    written = 0
    rejects = []
    target.mkdir(parents=True, exist_ok=True)
    try:
        for member in tqdm(_members(archive, name), desc=f"unpack {archive.name}", unit="file", disable=None):
            written += MEMBER_BYTES + (member.size if member.is_file else 0)
            if written > limit:
                raise UserError(
                    f"{name} unpacks to more than {limit:,} bytes from {size:,}, which looks like an archive bomb: unpack it "
                    "yourself if you trust it."
                )
            problem = _problem_of(member) or _write(member, target)
            if problem:
                rejects.append(Reject(printable(f"{name}/{member.name[:MAX_NAME]}"), "archive member", problem))
    except UserError:
        raise
    except Exception as error:
        # zipfile, tarfile and the decompressors raise many types on damaged data; only errors of the system have an errno
        number = getattr(error, "errno", None)
        if number is None:
            raise UserError(f"{name} is damaged or cut short ({one_line(error)}): make or fetch it again.") from error
        raise UserError(
            f"{name} cannot be unpacked into {target} ({os.strerror(number)}): make room or correct the permissions."
        ) from error
    return rejects


def _members(archive: Path, name: str) -> Iterator[_Member]:
    # A tar is recognised by its beginning, a zip by its end. A tar whose last member is a zip (.npz, .docx) has both.
    if tar := _tar(archive):
        with tar:
            yield from _tar_members(tar)
    elif zipfile.is_zipfile(archive):
        yield from _zip_members(archive)
    else:
        raise UserError(f"{name} is damaged or neither a zip nor a tar archive: make or fetch it again.")


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            is_file = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
            if not info.filename.endswith(("/", "\\")):  # a folder
                yield _Member(info.filename, info.file_size, is_file, partial(file.open, info))


def _tar(archive: Path) -> tarfile.TarFile | None:
    with suppress(tarfile.TarError):
        return tarfile.open(archive, tarinfo=type("_TarInfo", (_TarInfo,), {}))
    return None


def _tar_members(file: tarfile.TarFile) -> Iterator[_Member]:
    while (info := file.next()) is not None:
        file.members.clear()  # type: ignore[attr-defined]  # else all headers stay in memory
        if info.size < 0:  # from an extended header: tarfile would read this member for ever
            raise tarfile.ReadError("a negative size")
        if not info.isdir():
            yield _Member(info.name, info.size, info.isfile(), partial(file.extractfile, info))  # type: ignore[arg-type]
    assert file.fileobj is not None
    while rest := file.fileobj.read(1 << 20):  # to the checksum at the end of a compressed stream
        if rest.strip(b"\0"):  # tarfile takes a damaged header for the end of the archive
            raise tarfile.ReadError("data after the last member")


def _problem_of(member: _Member) -> str | None:
    """Why a member is refused, None if it is not."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    if not member.is_file:
        return "a link or a device"
    if path.is_absolute() or re.match("[A-Za-z]:", str(path)) or ".." in path.parts or "\0" in str(path):
        return "its name leads out of the archive"
    if len(path.parts) > MAX_PARTS:
        return f"its name has more than {MAX_PARTS} parts"
    return None


def _write(member: _Member, target: Path) -> str | None:
    """Write a member; returns why that is impossible, None if it is done. Raises errors of the system, such as a full disk."""
    place = target / member.name.replace("\\", "/")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, place.open("xb") as sink:
            shutil.copyfileobj(source, sink)
    except Exception as error:  # damaged data raise many types
        number = getattr(error, "errno", None)
        if number in _UNUSABLE_NAME:
            return f"its name cannot be used here ({os.strerror(number)})"
        if number is not None:
            raise
        place.unlink(missing_ok=True)
        return f"it cannot be unpacked ({one_line(error)})"
    return None
