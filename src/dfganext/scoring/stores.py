"""Images to score and the folder for their rows, on a local disk or in an object store, by path or address.

Object stores are accessed through pyarrow, which is imported only for an address. Local files are not: pyarrow accepts only
names that are valid UTF-8, and does not sync files to the disk.
"""

from __future__ import annotations

import glob
import heapq
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, unquote, urlsplit

from dfganext.data import discovery
from dfganext.data.discovery import Found, Unread
from dfganext.errors import UserError, one_line

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

CONNECTIONS = 16
"""Simultaneous requests to an object store."""

STALE_SECONDS = 3600
"""Age at which a temporary file is deleted: its writer was killed."""

SETTLE_SECONDS = 5.0
"""More than a run needs between listing an object store's folder and writing a file there."""

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_GLOB = re.compile(r"[*?[]")


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


class Folder(Protocol):
    """A folder of small files that are written atomically. It can be pickled."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        ...

    def names(self) -> set[str]:
        """Names of its files; empty where the folder does not exist. UserError if it cannot be listed."""
        ...

    def read(self, name: str) -> bytes:
        """A file's content. OSError, or FileNotFoundError."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file; make the folder where it does not exist. OSError."""
        ...

    def create(self, name: str, data: bytes) -> None:
        """Write a file if it does not exist; of several writers at the same time, one succeeds: read the file to know. OSError."""
        ...


def images_at(places: Sequence[str]) -> Listing:
    """The images of local files, folders and globs, or of one address in an object store.

    A folder stands for all images below it; a file is listed whatever its content. A glob (`**` for any number of folders)
    stands for the files and folders that it matches, except where a file or folder has that very name.

    Raises:
        UserError: a place does not exist, matches nothing, or is an address that cannot be used.
    """
    addresses = [place for place in places if _is_remote(place)]
    if not addresses:
        return Listing(", ".join(places), _local_images([_local(place) for place in places]), discovery.read, False)
    if len(places) > 1:
        raise UserError(
            f"{addresses[0]} is one of several places to score: give one address per run; several runs may share their OUT."
        )
    return _store_images(addresses[0])


def folder_at(place: str) -> Folder:
    """The folder of a local path or of an address in an object store; it need not exist. UserError if it is a file."""
    if _is_remote(place):
        return StoreFolder(StorePath.at(place))
    path = _local(place)
    if discovery.exists(path) and not path.is_dir():
        raise UserError(f"{place} is a file: name a folder for the rows, after the places of the images.")
    return LocalFolder(str(path))


@dataclass(frozen=True)
class LocalFolder:
    """A `Folder` on a file system of this machine, or on one that all machines share."""

    name: str

    def names(self) -> set[str]:
        for path in Path(self.name).glob(".*.tmp"):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - STALE_SECONDS:
                    path.unlink()
        try:
            return set(os.listdir(self.name))  # noqa: PTH208 - only names, of which there may be many
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise UserError(f"{self.name} cannot be listed ({error.strerror}): name another folder.") from None

    def read(self, name: str) -> bytes:
        return Path(self.name, name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        target = Path(self.name, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(_temporary(name))
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())  # otherwise a power cut may leave the name without the content
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def create(self, name: str, data: bytes) -> None:
        target = Path(self.name, name)
        if target.exists():
            return
        complete = target.with_name(_temporary(name))
        self.write(complete.name, data)
        try:
            os.link(complete, target)  # fails where the target exists
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            with suppress(FileExistsError), target.open("xb") as stream:
                stream.write(data)
        finally:
            complete.unlink(missing_ok=True)


@dataclass(frozen=True)
class StorePath:
    """A path in an object store: `address` as rows show it, without credentials and options, and `path` as the store names it."""

    filesystem: FileSystem
    address: str
    path: str

    @classmethod
    def at(cls, address: str) -> StorePath:
        """Connect. UserError if the address is of an unknown kind, or its options are wrong."""
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

    def path_of(self, address: str) -> str:
        """The store's path of an address below this one."""
        return self.path + address[len(self.address) :]

    def entries(self, folder: str) -> Iterator[Found]:
        """Files and folders in a folder, by its address; addresses of folders end in a slash. UserError if it cannot be listed."""
        from pyarrow.fs import FileSelector, FileType

        # one folder at a time: a recursive selector would hold all files of a store in memory
        for info in self._info(FileSelector(self.path_of(folder).rstrip("/")), folder):
            if info.type == FileType.Directory:
                yield Found(f"{folder}{info.base_name}/", 0)
            elif info.type == FileType.File:
                yield Found(f"{folder}{info.base_name}", info.size, info.mtime_ns)

    def info(self) -> FileInfo:
        """Whether there is a file or folder at this path, and its size and time. UserError if the store does not answer."""
        return self._info(self.path, self.address)

    def _info(self, selector: Any, address: str) -> Any:
        try:
            return self.filesystem.get_file_info(selector)
        except OSError as error:
            raise UserError(_no_access(address, error)) from None

    def read(self, address: str, limit: int | None = None) -> bytes:
        """The content of a file below this path, or its first `limit` bytes. OSError."""
        with self.filesystem.open_input_stream(self.path_of(address)) as stream:
            return stream.read(limit)

    def read_image(self, address: str) -> bytes | Unread:
        """Like `discovery.read`."""
        try:
            data = self.read(address, discovery.MAX_FILE_BYTES + 1)
        except OSError as error:
            return Unread(f"cannot be read ({one_line(error)})", temporary=True)
        return data if len(data) <= discovery.MAX_FILE_BYTES else Unread(discovery.TOO_LARGE, temporary=False)

    def begins_like_image(self, address: str) -> bool:
        """Like `discovery.begins_like_image`, of a file below this path. UserError if it cannot be read."""
        try:
            return discovery.begins_like_image(self.read(address, discovery.BEGINNING_BYTES))
        except OSError as error:
            raise UserError(_no_access(address, error)) from None


@dataclass(frozen=True)
class StoreFolder:
    """A `Folder` in an object store, where a file appears once it is complete.

    On Azure, this holds for new files only: replacing a file may leave an empty one if the process is killed.
    """

    place: StorePath

    @property
    def name(self) -> str:
        return self.place.address

    def names(self) -> set[str]:
        from pyarrow.fs import FileType

        kind = self.place.info().type
        if kind == FileType.File:
            raise UserError(f"{self.name} is a file: name a folder for the rows, after the places of the images.")
        if kind == FileType.NotFound:
            return set()
        root = f"{self.name}/"
        return {entry.path.removeprefix(root) for entry in self.place.entries(root)}

    def read(self, name: str) -> bytes:
        return self.place.read(f"{self.name}/{name}")

    def write(self, name: str, data: bytes) -> None:
        filesystem, target = self.place.filesystem, f"{self.place.path}/{name}"
        if filesystem.type_name in ("local", "hdfs"):  # object stores need no folders
            filesystem.create_dir(self.place.path)
        if filesystem.type_name == "local":  # where a file appears before it is complete
            temporary = f"{self.place.path}/{_temporary(name)}"
            self._send(temporary, data)
            filesystem.move(temporary, target)
        else:
            self._send(target, data)

    def _send(self, path: str, data: bytes) -> None:
        with self.place.filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def create(self, name: str, data: bytes) -> None:
        """Of several writers within SETTLE_SECONDS, the last one succeeds, since pyarrow has no conditional write.

        While the folder holds no other file, this waits until none of the writers that saw an empty folder can still write.
        """
        names = self.names()
        if name not in names:
            self.write(name, data)
        if names <= {name}:
            time.sleep(SETTLE_SECONDS)


def _temporary(name: str) -> str:
    """A new name for a temporary file; readers of Parquet folders skip names that begin with a dot."""
    return f".{name}.{uuid.uuid4().hex}.tmp"


def _is_remote(place: str) -> bool:
    return _ADDRESS.match(place) is not None and not place.lower().startswith("file://")


def _local(place: str) -> Path:
    """The absolute path, since workers and later runs have other working directories."""
    if _ADDRESS.match(place):
        parts = urlsplit(place)
        if parts.netloc not in ("", "localhost"):
            raise UserError(f"{place} names a machine: give file:///path, or the path alone.")
        place = unquote(parts.path)
    return Path(os.path.abspath(place))  # noqa: PTH100 - resolve() would follow links


def _local_images(places: Iterable[Path]) -> Iterator[Found]:
    """Checks at once that the places exist; lists folders while the images are consumed."""
    folders: set[Path] = set()
    files: set[Path] = set()
    for place in places:
        for path in [place] if discovery.exists(place) else _matches(place):
            (folders if path.is_dir() else files).add(path)
    listed = (
        discovery.found_at(str(path), path.stat()) if path.is_file() else Found(str(path), 0)
        for path in sorted(files, key=str)
    )
    merged = heapq.merge(listed, *map(discovery.images_below, sorted(folders)))
    return (next(same) for _, same in groupby(merged, key=lambda image: image.path))


def _matches(pattern: Path) -> list[Path]:
    if not _GLOB.search(str(pattern)):
        raise UserError(f"{pattern} does not exist: give files, folders or globs that do.")
    found = [Path(path) for path in glob.iglob(str(pattern), recursive=True)]  # noqa: PTH207 - takes absolute patterns
    if not found:
        raise UserError(f"{pattern} matches nothing: give files, folders or globs that exist.")
    return found


def _store_images(address: str) -> Listing:
    from pyarrow.fs import FileType

    place, pattern = StorePath.at(address), None
    info = place.info()
    if info.type == FileType.File:
        return Listing(place.address, iter([Found(place.address, info.size, info.mtime_ns)]), place.read_image, True)
    if info.type == FileType.NotFound:
        place, pattern = _split_glob(address)
    return Listing(place.address, _images_below(place, pattern), place.read_image, True)


def _split_glob(address: str) -> tuple[StorePath, re.Pattern[str]]:
    """The folder before the first wildcard, and a pattern of the addresses below it that match, or are in folders that match."""
    where, mark, options = address.partition("?")
    plain = _GLOB.split(where)[0]
    root = plain.rpartition("/")[0]
    base = StorePath.at(address if plain == where else root + mark + options)
    if plain == where or base.info().type.name != "Directory":
        raise UserError(f"{base.address} does not exist: give an address with images below it.")
    rest = _regular_expression(where[len(root) + 1 :])
    return base, re.compile(re.escape(f"{base.address}/") + rest + r"(?P<below>/.*)?", re.DOTALL)


def _regular_expression(pattern: str) -> str:
    """Of a glob: `*` and [...] within a name, `**/` for any number of folders. glob.translate needs Python 3.13."""
    kinds = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*"}
    tokens = re.findall(r"\*\*/|\*\*|\*|\[!?[^]]+\]|.", pattern, re.DOTALL)
    return "".join(
        kinds.get(token) or (token.replace("[!", "[^") if len(token) > 1 else re.escape(token)) for token in tokens
    )


def _images_below(place: StorePath, pattern: re.Pattern[str] | None) -> Iterator[Found]:
    """Images below a folder; with a pattern, the files that match, and the images in folders that match."""

    def entries(folder: str) -> Iterator[Found]:
        unnamed = []
        for found in place.entries(folder):
            match = pattern.fullmatch(found.path) if pattern else None
            if found.path.endswith("/") or (match and not match["below"]):
                yield found
            elif pattern and not match:
                continue
            elif discovery.named_like_image(found.path):
                yield found
            else:
                unnamed.append(found)
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            are_images = threads.map(place.begins_like_image, [found.path for found in unnamed])
            yield from (found for found, is_image in zip(unnamed, are_images, strict=True) if is_image)

    return discovery.in_order(f"{place.address}/", entries)


def _no_access(address: str, error: OSError) -> str:
    return f"{address} cannot be accessed ({one_line(error)}): check the address, the network and the credentials."
