"""Images to score and the folder for their rows, on a local disk or in an object store, by path or address.

Files are accessed through pyarrow, except local images (pyarrow accepts only names that are valid UTF-8) and local writes (it
does not sync them to the disk).
"""

from __future__ import annotations

import glob
import heapq
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from dfganext.data import discovery
from dfganext.data.discovery import Found, Unread
from dfganext.errors import UserError, one_line

CONNECTIONS = 16
"""Simultaneous requests to an object store."""

SETTLE_SECONDS = 2.0
"""More than a run needs between listing a folder and writing a file there."""

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True)
class Listing:
    """Images to score.

    images yields each file once, in the order of the paths, which are absolute or addresses. read takes a path and returns the
    file's bytes, or why they cannot be read; it can be pickled. remote: the images are read over a network, where reading can
    fail for reasons that have nothing to do with the file.
    """

    name: str
    images: Iterator[Found]
    read: Callable[[str], bytes | Unread]
    remote: bool


@dataclass(frozen=True)
class Folder:
    """A folder on a local disk or in an object store. It can be pickled.

    name: the absolute path, or the address without credentials and options. path: its name in the file system.
    """

    filesystem: FileSystem
    name: str
    path: str

    @classmethod
    def at(cls, place: str) -> Folder:
        """The folder of a path or address; it need not exist. UserError if an address is of an unknown kind or has wrong options."""
        if not _ADDRESS.match(place):
            path = os.path.abspath(place)  # noqa: PTH100 - resolve() would follow links
            return cls(LocalFileSystem(), path, path)
        address, mark, options = place.partition("?")
        parts = urlsplit(address)
        host = re.sub(r"^[^@]*:[^@]*@", "", parts.netloc)  # key:secret@bucket; container@account stays
        name = f"{parts.scheme}://{host}{unquote(parts.path)}".rstrip("/")
        try:
            filesystem, path = FileSystem.from_uri(quote(address, safe="/:@%&=+,;!$'()*~") + mark + options)
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = one_line(error).replace(parts.netloc, host)
            raise UserError(
                f"{name} cannot be used ({reason}): give a local path, or an address s3://…, gs://… or abfs://…."
            ) from None
        return cls(filesystem, name, path.rstrip("/"))

    def names(self) -> set[str]:
        """Names of its files but hidden ones; empty where there is no folder. UserError if it cannot be listed."""
        entries = self._info(self.path, inside=True)
        return {entry.base_name for entry in entries if not entry.base_name.startswith(".")}

    def read(self, name: str) -> bytes:
        """A file's content. OSError, or FileNotFoundError."""
        return self._read(f"{self.name}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file atomically; make the folder where it does not exist. OSError.

        On Azure, replacing a file may leave an empty one if the process is killed.
        """
        if self.filesystem.type_name != "local":  # a file appears once it is complete, and stores need no folders
            with self.filesystem.open_output_stream(f"{self.path}/{name}") as stream:
                stream.write(data)
            return
        with _complete(Path(self.path, name), data) as temporary:
            temporary.replace(Path(self.path, name))

    def create(self, name: str, data: bytes) -> None:
        """Write a file if it does not exist; of several writers, one succeeds. OSError.

        Object stores have no conditional write: there, the last of several writers within SETTLE_SECONDS succeeds. While the
        folder holds no other file, this waits until none of the writers that saw an empty folder can still write.
        """
        names = self.names()
        if self.filesystem.type_name == "local" and name not in names and _link(Path(self.path, name), data):
            return
        if name not in names:
            self.write(name, data)
        if names <= {name}:
            time.sleep(SETTLE_SECONDS)

    def images(self) -> Iterator[Found]:
        """Every image below an address, sorted by path, or the file at this address. UserError if there is nothing."""
        info = self._info(self.path)
        if info.type == FileType.NotFound:
            raise UserError(f"{self.name} does not exist: give an address with images below it.")
        if info.type == FileType.File:
            return iter([Found(self.name, info.size, info.mtime_ns)])
        return discovery.in_order(f"{self.name}/", self._entries)

    def read_image(self, address: str, limit: int = discovery.MAX_FILE_BYTES + 1) -> bytes | Unread:
        """Like `discovery.read`, of at most `limit` bytes of a file at or below this address."""
        try:
            data = self._read(address, limit)
        except OSError as error:
            return Unread(f"cannot be read ({one_line(error)})", temporary=True)
        return data if len(data) <= discovery.MAX_FILE_BYTES else Unread(discovery.TOO_LARGE, temporary=False)

    def _entries(self, folder: str) -> Iterator[Found]:
        """Images and folders in a folder, by its address; addresses of folders end in a slash."""
        unnamed = []
        # one folder at a time: a recursive selector would hold all files of a store in memory
        for info in self._info(self._path_of(folder).rstrip("/"), inside=True):
            found = Found(f"{folder}{info.base_name}", info.size, info.mtime_ns)
            if info.type == FileType.Directory:
                yield Found(f"{found.path}/", 0)
            elif info.type != FileType.File:
                continue  # opening a pipe would block
            elif discovery.named_like_image(found.path):
                yield found
            else:
                unnamed.append(found)
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            are_images = threads.map(self._begins_like_image, unnamed)
            yield from (found for found, is_image in zip(unnamed, are_images, strict=True) if is_image)

    def _begins_like_image(self, found: Found) -> bool:
        """Whether a file begins like an image, or cannot be read, so that its row says why."""
        beginning = self.read_image(found.path, discovery.BEGINNING_BYTES)
        return isinstance(beginning, Unread) or discovery.begins_like_image(beginning)

    def _info(self, path: str, inside: bool = False, attempts: int = 10) -> Any:
        """Kind, size and time of a file or folder, or of all entries of a folder. UserError if the file system does not say."""
        try:
            return self.filesystem.get_file_info(FileSelector(path, allow_not_found=True) if inside else path)
        except (OSError, ValueError) as error:  # ValueError: a name that is not UTF-8
            if isinstance(error, FileNotFoundError) and attempts > 1:
                # a file vanished while its folder was listed, such as the temporary one of another run
                return self._info(path, inside, attempts - 1)
            raise UserError(
                f"{self.name} cannot be accessed ({one_line(error)}): check its name, the network and the credentials."
            ) from None

    def _path_of(self, address: str) -> str:
        return self.path + address[len(self.name) :]

    def _read(self, address: str, limit: int | None = None) -> bytes:
        with self.filesystem.open_input_stream(self._path_of(address)) as stream:
            return stream.read(limit)


def images_at(places: Sequence[str]) -> Listing:
    """The images of local files, folders and globs, or of one address in an object store.

    A folder stands for all images below it; a file is listed whatever its content. A glob (`**` for any number of folders)
    stands for the files and folders that it matches, except where a file or folder has that very name.

    Raises:
        UserError: a place does not exist, matches nothing, or is an address that cannot be used.
    """
    addresses = [place for place in places if _ADDRESS.match(place)]
    if not addresses:
        return Listing(", ".join(places), _local_images(places), discovery.read, remote=False)
    if len(places) > 1:
        raise UserError(
            f"{addresses[0]} is one of several places to score: give one address per run; several runs may share their OUT."
        )
    folder = Folder.at(addresses[0])
    return Listing(folder.name, folder.images(), folder.read_image, remote=True)


@contextmanager
def _complete(target: Path, data: bytes) -> Iterator[Path]:
    """A temporary file with these contents beside `target`, whose folder is made where it does not exist. OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")  # readers of Parquet folders skip it
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut may leave the name without the content
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _link(target: Path, data: bytes) -> bool:
    """Make a file unless it exists, at once for all writers; False on a file system without hard links. Other OSErrors."""
    with _complete(target, data) as temporary:
        try:
            target.hardlink_to(temporary)
        except FileExistsError:
            pass
        except OSError:
            return False
    return True


def _local_images(places: Sequence[str]) -> Iterator[Found]:
    """Checks at once that the places exist; lists folders while the images are consumed."""
    matches: set[Path] = set()
    for place in places:
        path = Path(os.path.abspath(place))  # noqa: PTH100 - resolve() would follow links
        found = [path] if discovery.exists(path) else [Path(one) for one in glob.glob(str(path), recursive=True)]  # noqa: PTH207
        if not found:
            raise UserError(f"{place} does not exist, or matches nothing: give files, folders or globs that do.")
        matches.update(found)
    folders = [path for path in matches if path.is_dir()]
    files = sorted(
        discovery.found_at(str(path), path.stat()) if path.is_file() else Found(str(path), 0)
        for path in matches.difference(folders)
    )
    merged = heapq.merge(files, *map(discovery.images_below, folders))
    return (next(same) for _, same in groupby(merged, key=lambda image: image.path))
