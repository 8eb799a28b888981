"""Images to score and the folder for their rows, on a local disk or in an object store, told apart by the address.

Object stores are reached through pyarrow, which is imported only where an address names one.
"""

from __future__ import annotations

import glob
import hashlib
import heapq
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, unquote, urlsplit

from dfganext.data import discovery as inputs
from dfganext.data.discovery import Found, Unread
from dfganext.errors import UserError, one_line

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

CONNECTIONS = 16
"""Requests to an object store at a time: each waits long for little."""

STALE_SECONDS = 3600
"""A temporary file as old as this was left behind by a writer that was killed."""

CLAIM = "_claim-"
"""Beginning of the names of small files with which writers announce themselves. Readers of Parquet folders pass over them."""

SETTLE_SECONDS = 5.0
"""More than an object store takes from a listing to the next file written."""

ABANDONED_SECONDS = 60.0
"""A claim that is older than another one by this was left behind: its writer would be done."""

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_GLOB = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Listing:
    """Images to score.

    images yields each file once, in the order of the paths, absolute or with their address; read takes such a path and gives
    the file's bytes, or why there are none. It can be pickled. remote: over a network, where reading fails for
    reasons that have nothing to do with the file.
    """

    name: str
    images: Iterator[Found]
    read: Callable[[str], bytes | Unread]
    remote: bool


class Folder(Protocol):
    """A folder of small files, each of which is there whole or not at all. It can be pickled."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def names(self) -> set[str]:
        """Files in it; empty where there is no such folder. UserError if it cannot be looked into."""
        ...

    def read(self, name: str) -> bytes:
        """A file's content. OSError, FileNotFoundError among them."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file, in the place of one that has this name, and the folder where it is missing. OSError."""
        ...

    def create(self, name: str, data: bytes) -> None:
        """Write a file unless there is one of this name. Of several writers at once, one succeeds. OSError.

        The file may be of another writer afterwards, or not be there yet: read it to know.
        """
        ...


def images_at(places: Sequence[str]) -> Listing:
    """The images of local files, folders and globs, or of one address in an object store.

    A folder stands for all images below it, however deep; a file is taken whatever it is. A glob (`**` for any number of
    folders) stands for the files and folders that it matches; what exists under that very name is no glob.

    Raises:
        UserError: something does not exist, matches nothing, or is an address that cannot be used.
    """
    addresses = [place for place in places if _is_remote(place)]
    if not addresses:
        return Listing(", ".join(places), _local_images([_local(place) for place in places]), inputs.read, False)
    if len(places) > 1:
        raise UserError(
            f"{addresses[0]} is one of several places to score: give one address a run; several runs may share their OUT."
        )
    return _stored_images(addresses[0])


def folder_at(place: str) -> Folder:
    """The folder of a local path or of an address in an object store; it need not exist. UserError if it cannot be one."""
    if _is_remote(place):
        return StoredFolder(Stored.at(place))
    path = _local(place)
    if inputs.exists(path) and not path.is_dir():
        raise UserError(f"{place} is a file: name a folder for the rows, after the places of the images.")
    return LocalFolder(str(path))


@dataclass(frozen=True)
class LocalFolder:
    """A `Folder` on a file system of this machine, or on one that all machines share."""

    name: str

    def names(self) -> set[str]:
        self._tidy()
        try:
            return set(os.listdir(self.name))  # noqa: PTH208 - names alone, of which there may be many
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise UserError(f"{self.name} cannot be listed ({error.strerror}): name another folder.") from None

    def read(self, name: str) -> bytes:
        return Path(self.name, name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        target = Path(self.name, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{name}.{uuid.uuid4().hex}.tmp")  # the dot hides it from readers of the folder
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())  # or a power cut might leave the name without the content
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def create(self, name: str, data: bytes) -> None:
        target = Path(self.name, name)
        temporary = f".{name}.{uuid.uuid4().hex}.tmp"
        self.write(temporary, data)
        try:
            os.link(target.with_name(temporary), target)  # fails where there is one, and shows it whole
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            with suppress(FileExistsError), target.open("xb") as stream:
                stream.write(data)
        finally:
            target.with_name(temporary).unlink(missing_ok=True)

    def _tidy(self) -> None:
        for path in Path(self.name).glob(".*.tmp"):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - STALE_SECONDS:
                    path.unlink()


@dataclass(frozen=True)
class Stored:
    """A place in an object store: `address` as rows show it, without credentials and options, and `path` as the store has it."""

    filesystem: FileSystem
    address: str
    path: str

    @classmethod
    def at(cls, address: str) -> Stored:
        """Connect. UserError if the address is of no known kind, or its options make no sense."""
        try:
            import pyarrow as pa
            from pyarrow.fs import FileSystem
        except ImportError:
            raise UserError(f"{address} needs pyarrow: pip install 'df-ganext[scale]'.") from None
        place, mark, options = address.partition("?")
        parts = urlsplit(place)
        host = re.sub(r"^[^@]*:[^@]*@", "", parts.netloc)  # key:secret@bucket; container@account stays
        shown = f"{parts.scheme}://{host}{unquote(parts.path)}".rstrip("/")
        try:
            filesystem, path = FileSystem.from_uri(quote(place, safe="/:@%&=+,;!$'()*~") + mark + options)
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = one_line(error).replace(parts.netloc, host)
            raise UserError(
                f"{shown} cannot be used ({reason}): give a local path, or an address s3://…, gs://… or abfs://…."
            ) from None
        return cls(filesystem, shown, path.rstrip("/"))

    def inside(self, address: str) -> str:
        """What the store calls a file that is shown as `address`."""
        return self.path + address[len(self.address) :]

    def entries(self, folder: str) -> Iterator[Found]:
        """What is in a folder, by its address; paths of folders end in a slash. UserError if the store does not say."""
        from pyarrow.fs import FileSelector, FileType

        try:
            found = self.filesystem.get_file_info(FileSelector(self.inside(folder).rstrip("/")))
        except OSError as error:
            raise UserError(_no_access(folder, error)) from None
        for one in found:
            if one.type == FileType.Directory:
                yield Found(f"{folder}{one.base_name}/", 0)
            elif one.type == FileType.File:
                yield Found(f"{folder}{one.base_name}", one.size, one.mtime_ns)

    def kind(self) -> str:
        """ "file", "folder" or "" where there is nothing. UserError if the store does not say."""
        from pyarrow.fs import FileType

        return {FileType.File: "file", FileType.Directory: "folder"}.get(self._info().type, "")

    def found(self) -> Found:
        """The file at this very place, with its size and time. UserError if the store does not say."""
        info = self._info()
        return Found(self.address, info.size, info.mtime_ns)

    def _info(self) -> FileInfo:
        try:
            return self.filesystem.get_file_info(self.path)
        except OSError as error:
            raise UserError(_no_access(self.address, error)) from None

    def read(self, address: str, limit: int | None = None) -> bytes:
        """The content, or its first `limit` bytes. OSError."""
        with self.filesystem.open_input_stream(self.inside(address)) as stream:
            return stream.read(limit)

    def image(self, address: str) -> bytes | Unread:
        """As `inputs.read`."""
        try:
            data = self.read(address, inputs.MAX_FILE_BYTES + 1)
        except OSError as error:
            return Unread(f"cannot be read ({one_line(error)})", temporary=True)
        return data if len(data) <= inputs.MAX_FILE_BYTES else Unread(inputs.TOO_LARGE, temporary=False)

    def begins_like_image(self, address: str) -> bool:
        """Whether the content is that of an image, by its first bytes."""
        try:
            return inputs.begins_like_image(self.read(address, inputs.BEGINNING_BYTES))
        except OSError as error:
            raise UserError(_no_access(address, error)) from None


@dataclass(frozen=True)
class StoredFolder:
    """A `Folder` in an object store, which shows a file once it was sent whole.

    Of Azure this holds for new files; of one that is replaced, pyarrow may leave an empty one where its process is killed.
    """

    place: Stored

    @property
    def name(self) -> str:
        return self.place.address

    def names(self) -> set[str]:
        kind = self.place.kind()
        if kind == "file":
            raise UserError(f"{self.name} is a file: name a folder for the rows, after the places of the images.")
        here = f"{self.name}/"
        return {found.path[len(here) :] for found in self.place.entries(here)} if kind else set()

    def read(self, name: str) -> bytes:
        return self.place.read(f"{self.name}/{name}")

    def write(self, name: str, data: bytes) -> None:
        filesystem = self.place.filesystem
        if filesystem.type_name in ("local", "hdfs"):  # object stores have no folders to make
            filesystem.create_dir(self.place.path)
        target = f"{self.place.path}/{name}"
        if filesystem.type_name == "local":  # a disk shows a file before it is whole
            temporary = f"{self.place.path}/.{name}.{uuid.uuid4().hex}.tmp"
            self._send(temporary, data)
            filesystem.move(temporary, target)
        else:
            self._send(target, data)

    def _send(self, path: str, data: bytes) -> None:
        with self.place.filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def create(self, name: str, data: bytes) -> None:
        """As `Folder.create`, of stores where pyarrow can only replace files: each writer announces itself, waits, and looks.

        A writer whose file is announced before another one looks is seen by it; the one whose data have the lower digest
        writes. One that comes later finds the file, provided that the first one took less than SETTLE_SECONDS from its look
        to its file. After another such wait, all read the same file.
        """
        claim = f"{CLAIM}{hashlib.sha256(data).hexdigest()}-{uuid.uuid4().hex}"
        self.write(claim, b"claimed")
        try:
            time.sleep(SETTLE_SECONDS)
            there = {found.path.rpartition("/")[2]: found.modified for found in self.place.entries(f"{self.name}/")}
            if name not in there and not self._preceded(claim, there):
                self.write(name, data)
            time.sleep(SETTLE_SECONDS)
        finally:
            with suppress(
                OSError
            ):  # a permission to write may not be one to delete; the claim counts for a minute only
                self.place.filesystem.delete_file(f"{self.place.path}/{claim}")

    @staticmethod
    def _preceded(claim: str, there: Mapping[str, int | None]) -> bool:
        """Whether there is a claim before this one that is no leftover of a killed writer, by the store's own clock."""
        mine, digest = there.get(claim), claim[: len(CLAIM) + 64]
        return any(
            mine is None or modified is None or modified > mine - ABANDONED_SECONDS * 10**9
            for name, modified in there.items()
            if name.startswith(CLAIM) and name[: len(digest)] < digest
        )


def _is_remote(place: str) -> bool:
    return _ADDRESS.match(place) is not None and not place.lower().startswith("file://")


def _local(place: str) -> Path:
    """An absolute path, since workers and later runs have other working directories; links stay as they are."""
    if _ADDRESS.match(place):
        parts = urlsplit(place)
        if parts.netloc not in ("", "localhost"):
            raise UserError(f"{place} names a machine: give file:///path, or the path alone.")
        place = unquote(parts.path)
    return Path(os.path.abspath(place))  # noqa: PTH100 - resolve() would follow links


def _local_images(places: Iterable[Path]) -> Iterator[Found]:
    """Raises for what is missing at once, and lists folders as the images are asked for."""
    folders: set[Path] = set()
    files: set[Path] = set()
    for place in places:
        for path in [place] if inputs.exists(place) else _matches(place):
            (folders if path.is_dir() else files).add(path)
    listed = (
        inputs.found_at(str(path), path.stat()) if path.is_file() else Found(str(path), 0)
        for path in sorted(files, key=str)
    )
    return _each_once(heapq.merge(listed, *map(inputs.images_below, sorted(folders))))


def _matches(pattern: Path) -> list[Path]:
    if not _GLOB.search(str(pattern)):
        raise UserError(f"{pattern} does not exist: give files, folders or globs that do.")
    found = [Path(path) for path in glob.iglob(str(pattern), recursive=True)]  # noqa: PTH207 - takes absolute patterns
    if not found:
        raise UserError(f"{pattern} matches nothing: give files, folders or globs that exist.")
    return found


def _each_once(images: Iterable[Found]) -> Iterator[Found]:
    return (next(same) for _, same in groupby(images, key=lambda image: image.path))


def _stored_images(address: str) -> Listing:
    place = Stored.at(address)
    kind = place.kind()
    if kind == "file":
        found: Iterator[Found] = iter([place.found()])
    elif kind == "folder":
        found = _stored_below(place, f"{place.address}/", None)
    else:
        place, pattern = _split_glob(address)
        found = _stored_below(place, f"{place.address}/", pattern)
    return Listing(place.address, found, place.image, True)


def _split_glob(address: str) -> tuple[Stored, re.Pattern[str]]:
    """The folder before the first wildcard, and what the addresses below it must match, they or a folder above them."""
    where, mark, options = address.partition("?")
    plain = _GLOB.split(where)[0]
    root, rest = where[: plain.rindex("/")], where[plain.rindex("/") + 1 :]
    if not _GLOB.search(rest):
        raise UserError(f"{Stored.at(address).address} does not exist: give an address with images below it.")
    base = Stored.at(root + mark + options)
    if base.kind() != "folder":
        raise UserError(f"{base.address} does not exist: give an address with images below it.")
    return base, re.compile(re.escape(f"{base.address}/") + _regular_expression(rest) + r"(?P<below>/.*)?", re.DOTALL)


def _regular_expression(pattern: str) -> str:
    """Of a glob: `*` and [...] within a name, `**/` for any number of folders."""
    kinds = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*"}
    tokens = re.findall(r"\*\*/|\*\*|\*|\[!?[^]]+\]|.", pattern, re.DOTALL)
    return "".join(
        kinds.get(token) or (token.replace("[!", "[^") if len(token) > 1 else re.escape(token)) for token in tokens
    )


def _stored_below(place: Stored, root: str, pattern: re.Pattern[str] | None) -> Iterator[Found]:
    """Images below a folder; with a pattern, the files that match, and the images in folders that do."""

    def entries(folder: str) -> Iterator[Found]:
        unnamed = []
        for found in place.entries(folder):
            match = pattern.fullmatch(found.path) if pattern else None
            if found.path.endswith("/") or (match and not match["below"]):
                yield found
            elif pattern and not match:
                continue
            elif inputs.named_like_image(found.path):
                yield found
            else:
                unnamed.append(found)
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            told = threads.map(place.begins_like_image, [found.path for found in unnamed])
            yield from (found for found, is_image in zip(unnamed, told, strict=True) if is_image)

    return inputs.in_order(root, entries)


def _no_access(address: str, error: OSError) -> str:
    return f"{address} cannot be looked at ({one_line(error)}): check the address, the network and the credentials."
