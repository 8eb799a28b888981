"""Unpacking zip and tar archives from anywhere: nothing is written outside the target folder, and no archive fills the disk."""

from __future__ import annotations

import errno
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Self, cast

from tqdm import tqdm

from dfganext.data.trees import Reject, printable
from dfganext.errors import UserError, one_line

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

MAX_BYTES = 256 * 2**30
MAX_RATIO = 200
RATIO_COUNTS_ABOVE = 2**30
"""An archive may grow to MAX_BYTES, and to MAX_RATIO times its own size once it is past RATIO_COUNTS_ABOVE bytes."""

_CHUNK = 1 << 20
_MAX_PARTS = 100
"""In a member's name, folders and file: deeper ones would exhaust the stack that makes and walks them."""

# NotImplementedError: a version of zip that Python lacks; ValueError: names and numbers that are none, UnicodeDecodeError among
# them; MemoryError: a damaged dictionary size of LZMA
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


class _TooLargeError(Exception):
    pass


def stem(name: str) -> str | None:
    """The name of an archive without its suffix, or None if the name is not an archive's."""
    suffix = max((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), key=len, default=None)
    return name[: -len(suffix)] or None if suffix else None


def extract(
    archive: Path,
    target: Path,
    name: str | None = None,
    max_bytes: int = MAX_BYTES,
    max_ratio: int = MAX_RATIO,
    ratio_counts_above: int = RATIO_COUNTS_ABOVE,
) -> list[Reject]:
    """Unpack a zip or a tar (plain, gz, bz2, xz), told apart by content, into a folder.

    Only regular files are written, with new contents and default permissions. Members that would land elsewhere, links,
    devices, encrypted and damaged members are left out; a hard link to an earlier member of a tar becomes a copy of it.

    Args:
        archive: the file.
        target: the folder to fill; made if missing, and it must hold nothing.
        name: what to call the archive in messages (default: its path).
        max_bytes: the most that may be written.
        max_ratio: the most that may be written for each byte of the archive, once past `ratio_counts_above` bytes.

    Returns:
        The members left out, in the archive's order, each with the reason.

    Raises:
        UserError: the file is no zip or tar, is damaged as a whole, exceeds a limit, or the disk is full.
    """
    name = name or str(archive)
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise ValueError(f"{target} is not empty")
    limit = min(max_bytes, max(ratio_counts_above, max_ratio * archive.stat().st_size))
    writer = _Writer(target, name, limit)
    try:
        # a tar is known by its beginning, a zip by its end, which a tar has too where its last member is a zip (.npz, .docx)
        if tarfile.is_tarfile(archive):
            _extract_tar(archive, writer)
        elif zipfile.is_zipfile(archive):
            _extract_zip(archive, writer)
        else:
            raise UserError(f"{name} is damaged or neither a zip nor a tar archive: make or fetch it again.")
    except _TooLargeError:
        raise UserError(
            f"{name} unpacks to more than {limit:,} bytes from {archive.stat().st_size:,}, which looks like an archive bomb: "
            "unpack it yourself if you trust it."
        ) from None
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(f"The disk is full, so {name} cannot be unpacked into {target}: make room.") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{name} cannot be unpacked into {target}: {error.strerror}.") from error
        raise UserError(f"{name} is damaged or cut short ({one_line(error)}): make or fetch it again.") from error
    return writer.rejects


class _Writer:
    """Writes members below one folder, counts the bytes and keeps the list of what it refused."""

    def __init__(self, target: Path, name: str, limit: int) -> None:
        self.target, self.name, self.limit = target, name, limit
        self.written = 0
        self.rejects: list[Reject] = []

    def refuse(self, member: str, detail: str) -> None:
        self.rejects.append(Reject(printable(f"{self.name}/{member}"), "archive member", detail))

    def place(self, member: str) -> Path | None:
        """Where a member goes, or None (and a reject) where its name leads out of the target or too deep."""
        name = member.replace("\\", "/")
        parts = PurePosixPath(name).parts
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in parts or "\0" in name:
            self.refuse(member, "its name leads out of the archive")
            return None
        if len(parts) > _MAX_PARTS:
            self.refuse(member, f"its name has more than {_MAX_PARTS} parts")
            return None
        return self.target.joinpath(*parts) if parts else None

    def write(self, member: str, open_member: Callable[[], IO[bytes]], spoilt: tuple[type[Exception], ...]) -> None:
        """Copy one member; `spoilt` are the errors that concern this member alone."""
        path = self.place(member)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sink = path.open("xb")
        except FileExistsError:
            self.refuse(member, "another member has the same name")
            return
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            self.refuse(member, f"its name cannot be used here: {error.strerror}")
            return
        try:
            with sink, open_member() as stream:
                while chunk := stream.read(_CHUNK):
                    self.written += len(chunk)
                    if self.written > self.limit:
                        raise _TooLargeError
                    sink.write(chunk)
        except spoilt as error:
            path.unlink()
            self.refuse(member, f"it cannot be unpacked: {one_line(error)}")


def _extract_zip(archive: Path, writer: _Writer) -> None:
    # RuntimeError: encrypted; NotImplementedError here: a compression method that Python lacks
    spoilt = (*_DAMAGE, RuntimeError)
    with zipfile.ZipFile(archive) as file:
        for member in tqdm(file.infolist(), desc=f"unpack {archive.name}", unit="file", disable=None):
            kind = member.external_attr >> 16 & 0o170000
            if member.is_dir():
                continue
            if kind not in (0, 0o100000):
                writer.refuse(member.filename, "a link or a device")
                continue
            writer.write(member.filename, partial(file.open, member), spoilt)


class _Member(tarfile.TarInfo):
    """A header that must be sound: left to itself, tarfile takes a damaged one for the end of the archive."""

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
        for member in tqdm(iter(file.next, None), desc=f"unpack {archive.name}", unit="file", disable=None):
            if member.isdir():
                continue
            if member.islnk():
                _copy_hard_link(member, writer)
            elif member.isfile():
                writer.write(member.name, cast(Callable[[], IO[bytes]], partial(file.extractfile, member)), ())
            else:
                writer.refuse(member.name, "a link or a device")
            file.members = []  # type: ignore[attr-defined]  # or memory would grow with the archive
        assert file.fileobj is not None
        while file.fileobj.read(_CHUNK):  # to the checksum at the end of a compressed stream
            pass


def _copy_hard_link(member: tarfile.TarInfo, writer: _Writer) -> None:
    rejects = len(writer.rejects)
    original = writer.place(member.linkname)
    del writer.rejects[rejects:]
    if original is None or not original.is_file():
        writer.refuse(member.name, "a hard link to what is not in the archive")
    else:
        writer.write(member.name, lambda: original.open("rb"), ())
