"""Unpacks zip and tar archives safely: nothing is written outside the target folder, and no archive fills the disk."""

from __future__ import annotations

import errno
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Self

from tqdm import tqdm

from dfganext.data.discovery import Reject, printable
from dfganext.errors import UserError, one_line

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

MAX_BYTES = 256 * 2**30
MAX_RATIO = 200
RATIO_COUNTS_ABOVE = 2**30
"""An archive may unpack to MAX_BYTES, and, above RATIO_COUNTS_ABOVE bytes, to MAX_RATIO times its own size."""

_CHUNK = 1 << 20
_MAX_PARTS = 100
"""Folders and file in a member's name: deeper ones would exhaust the stack of the functions that make and remove them."""

# NotImplementedError: a zip version or compression that Python lacks; ValueError: malformed names and numbers, UnicodeDecodeError
# among them; MemoryError: a damaged dictionary size of LZMA
_DAMAGE = (
    zlib.error,
    lzma.LZMAError,
    EOFError,
    tarfile.TarError,
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    OverflowError,
    struct.error,
    MemoryError,
)

_UNUSABLE_NAME = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


def stem(name: str) -> str | None:
    """The name of an archive without its suffix, or None if the name is not an archive's."""
    suffix = max((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), key=len, default=None)
    return name[: -len(suffix)] or None if suffix else None


def extract(archive: Path, target: Path, name: str | None = None) -> list[Reject]:
    """Unpack a zip or a tar (plain, gz, bz2, xz), recognised by content, into a folder.

    Only regular files are written, with default permissions. Members that would land elsewhere, links (hard links too), devices,
    encrypted and damaged members are left out.

    Args:
        archive: the file.
        target: the folder to fill; made if missing, and must be empty.
        name: the archive's name in messages (default: its path).

    Returns:
        The members left out, in the archive's order, each with the reason.

    Raises:
        UserError: the file is neither a zip nor a tar, is damaged as a whole, exceeds a limit, or the disk is full.
    """
    name = name or str(archive)
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise ValueError(f"{target} is not empty")
    writer = _Writer(target, name, archive.stat().st_size)
    try:
        # A tar is recognised by its beginning, a zip by its end. A tar whose last member is a zip (.npz, .docx) has both.
        if tarfile.is_tarfile(archive):
            _extract_tar(archive, writer)
        elif zipfile.is_zipfile(archive):
            _extract_zip(archive, writer)
        else:
            raise UserError(f"{name} is damaged or neither a zip nor a tar archive: make or fetch it again.")
    except (OSError, *_DAMAGE) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(
                f"{name} cannot be unpacked into {target} ({error.strerror}): make room or correct the permissions."
            ) from error
        raise UserError(f"{name} is damaged or cut short ({one_line(error)}): make or fetch it again.") from error
    return writer.rejects


class _Writer:
    """Checks each member before it is written below one folder, and lists the members that it refuses."""

    def __init__(self, target: Path, name: str, archive_bytes: int) -> None:
        self.target, self.name, self.archive_bytes = target, name, archive_bytes
        self.limit = min(MAX_BYTES, max(RATIO_COUNTS_ABOVE, MAX_RATIO * archive_bytes))
        self.written = 0
        self.rejects: list[Reject] = []

    def refuse(self, member: str, detail: str) -> None:
        self.rejects.append(Reject(printable(f"{self.name}/{member}"), "archive member", detail))

    def write(self, member: str, size: int, extract_as: Callable[[str], object], independent: bool) -> None:
        """Extract one member, or refuse it.

        Args:
            member: its name in the archive.
            size: its size according to the archive; zipfile and tarfile write no more than that.
            extract_as: extracts it below the target, under the name given.
            independent: whether damage concerns this member alone (zip), not those that follow (tar).
        """
        name = PurePosixPath(member.replace("\\", "/"))
        problem = _problem_of(name)
        if problem:
            return self.refuse(member, problem)
        self.written += size
        if self.written > self.limit:
            raise UserError(
                f"{self.name} unpacks to more than {self.limit:,} bytes from {self.archive_bytes:,}, which looks like an archive "
                "bomb: unpack it yourself if you trust it."
            )
        place = self.target / name
        if os.path.lexists(place):
            return self.refuse(member, "another member has the same name")
        try:
            extract_as(str(name))
        except (OSError, RuntimeError, *_DAMAGE) as error:  # RuntimeError: encrypted
            number = getattr(error, "errno", None)
            if number in _UNUSABLE_NAME:
                return self.refuse(member, f"its name cannot be used here: {os.strerror(number)}")
            if number is not None or not (independent or isinstance(error, tarfile.FilterError)):
                raise
            with suppress(OSError):
                place.unlink()
            self.refuse(member, f"it cannot be unpacked: {one_line(error)}")


def _problem_of(name: PurePosixPath) -> str | None:
    """Why a member's name is refused. zipfile and tarfile would strip what leads out of it, and write the file elsewhere."""
    if name.is_absolute() or re.match(r"[A-Za-z]:", str(name)) or ".." in name.parts or "\0" in str(name):
        return "its name leads out of the archive"
    if len(name.parts) > _MAX_PARTS:
        return f"its name has more than {_MAX_PARTS} parts"
    return None


def _extract_zip(archive: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(archive) as file:

        def extract_as(name: str, member: zipfile.ZipInfo) -> None:
            member.filename = name
            file.extract(member, writer.target)

        for member in tqdm(file.infolist(), desc=f"unpack {archive.name}", unit="file", disable=None):
            if member.filename.endswith(("/", "\\")):  # a folder
                continue
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
                writer.refuse(member.filename, "a link or a device")
            else:
                writer.write(member.filename, member.file_size, partial(extract_as, member=member), independent=True)


class _Member(tarfile.TarInfo):
    """A header that must be sound: tarfile itself takes a damaged one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error or 'no end mark'} at byte {tarfile_.offset:,}") from None


def _extract_tar(archive: Path, writer: _Writer) -> None:
    with tarfile.open(archive, tarinfo=_Member) as file:

        def extract_as(name: str, member: tarfile.TarInfo) -> None:
            file.extract(member.replace(name=name, deep=False), writer.target, set_attrs=False, filter="data")

        for member in tqdm(iter(file.next, None), desc=f"unpack {archive.name}", unit="file", disable=None):
            if member.isdir():
                continue
            if member.isfile():
                writer.write(member.name, member.size, partial(extract_as, member=member), independent=False)
            else:
                writer.refuse(member.name, "a link or a device")
            file.members = []  # type: ignore[attr-defined]  # otherwise memory grows with the archive
        assert file.fileobj is not None
        while file.fileobj.read(_CHUNK):  # to the checksum at the end of a compressed stream
            pass
