"""What is said of an image, and the folder of Parquet files that keeps it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import dfganext
from dfganext.data.discovery import Found, printable
from dfganext.errors import UserError, one_line
from dfganext.scoring.model import Model
from dfganext.scoring.stores import CLAIM, CONNECTIONS, Folder

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("path", "label", "p_fake", "threshold", "error", "retry", "size", "modified", "model_version")

RECORD = "_score.json"
"""In OUT, whose verdicts it holds. Readers of Parquet folders pass over names that begin so."""

UNKNOWN = np.iinfo(np.int64).min
"""In place of a size or time that is not known; as a time, it is numpy's and Parquet's "not a time"."""


class Row(NamedTuple):
    """What is said of one content of an image, which its size and time tell from the next; and whether there were bytes.

    retry: there is an error, for a reason that may pass.
    """

    path: str
    label: str | None
    p_fake: float | None
    threshold: float
    error: str | None
    retry: bool
    size: int
    modified: int | None
    data_read: bool


class State(NamedTuple):
    """What a folder knows of images, each (N,).

    known: it has a row. done: one that holds. unread: one that holds and has an error. unversioned: one that does not say of which
    content it is. file: the index of the file with the row.
    """

    known: np.ndarray
    done: np.ndarray
    unread: np.ndarray
    unversioned: np.ndarray
    file: np.ndarray


@dataclass(frozen=True)
class Scored:
    """The rows of a folder, in the order of the digests of their paths (S16).

    sizes and modified (int64) are of the image when it was judged, UNKNOWN where the row does not say; unread and retry (bool)
    say whether it has an error, and one that may pass; file (int) is the index in names.
    """

    digests: np.ndarray
    sizes: np.ndarray
    modified: np.ndarray
    unread: np.ndarray
    retry: np.ndarray
    file: np.ndarray
    names: Sequence[str]
    counts: np.ndarray
    """Rows of each file."""

    @classmethod
    def read(cls, folder: Folder) -> Scored:
        """Collect them from all parts in a folder. UserError if one cannot be read."""
        names = sorted(name for name in folder.names() if name.startswith("part-") and name.endswith(".parquet"))
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            found = list(threads.map(lambda name: _rows_of(folder, name), names))
        return cls.of(names, found)

    @classmethod
    def of(cls, names: Sequence[str], found: Sequence[tuple[np.ndarray, ...]]) -> Scored:
        """From digests, sizes, modified, unread and retry of the rows of each file."""
        counts = np.array([len(columns[0]) for columns in found], int)
        types = ("S16", "int64", "int64", "bool", "bool")
        columns = [
            np.concatenate([np.empty(0, kind), *(columns[index] for columns in found)])
            for index, kind in enumerate(types)
        ]
        order = np.argsort(columns[0], kind="stable")
        file = np.repeat(np.arange(len(names)), counts)
        digests, sizes, modified, unread, retry, file = (column[order] for column in (*columns, file))
        return cls(digests, sizes, modified, unread, retry, file, names, counts)

    def among(self, images: Sequence[Found]) -> State:
        """What is known of images. A row holds if it is of the content that is there now, and does not ask for another try."""
        known, places = self._find([image.path for image in images])
        if not len(self.digests):
            return State(known, known, known, known, places)
        sizes = np.array([image.size for image in images], np.int64)
        modified = np.array([time_of(image.modified) for image in images], np.int64)
        same = (self.sizes[places] == sizes) & (self.modified[places] == modified)
        done = known & same & ~self.retry[places]
        unversioned = known & (self.sizes[places] == UNKNOWN)
        return State(known, done, done & self.unread[places], unversioned, self.file[places])

    def superfluous(self, folders: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """File and digest of rows that say of these folders, which now can be listed, that they could not be read."""
        known, places = self._find(folders)
        for place in places[known]:
            if self.retry[place]:
                yield int(self.file[place]), bytes(self.digests[place])

    def doubles(self) -> Iterator[tuple[int, bytes]]:
        """File and digest of all but the first row of each path: writers that outlived their run may have left them."""
        for place in 1 + np.flatnonzero(self.digests[1:] == self.digests[:-1]):
            yield int(self.file[place]), bytes(self.digests[place])

    def _find(self, paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Whether each path has a row, and its place."""
        if not len(self.digests):
            return np.zeros(len(paths), bool), np.zeros(len(paths), int)
        wanted = digests_of([printable(path) for path in paths])
        places = np.minimum(np.searchsorted(self.digests, wanted), len(self.digests) - 1)
        return self.digests[places] == wanted, places


def agreed(folder: Folder, model: Model) -> Model:
    """The model under the name by which a folder knows it. UserError where the folder holds anything but its verdicts."""
    names = folder.names()
    if RECORD not in names:
        if any(not name.startswith((".", CLAIM)) for name in names):
            raise UserError(
                f"{folder.name} holds other files than `dfganext score` writes: name a new or an empty folder."
            )
        return model
    try:
        theirs = json.loads(folder.read(RECORD))["model"]
        same, version, threshold = theirs["sha256"] == model.sha256, theirs["version"], theirs["threshold"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder.name}/{RECORD} cannot be read ({one_line(error)}): name another folder.") from None
    if not same:
        raise UserError(
            f"{folder.name} holds verdicts of another model, {version} with threshold {threshold:.6g}, not of {model.version} "
            f"with {model.threshold:.6g}: name another folder, or that model with --model and --threshold."
        )
    return replace(model, version=version)


def claim(folder: Folder, model: Model) -> Model:
    """Write down whose verdicts a folder holds, where it does not say so yet; the model, as `agreed` gives it.

    Of commands with different models that do so at once, one gets the folder.

    Raises:
        UserError: it cannot be written to, or it went to another model.
    """
    record = {
        "model": {
            "version": model.version,
            "sha256": model.sha256,
            "threshold": model.threshold,
            "temperature": model.temperature if model.calibrated else None,
        },
        "columns": COLUMNS,
        "dfganext": dfganext.__version__,
    }
    if RECORD not in folder.names():
        try:
            folder.create(RECORD, (json.dumps(record, indent=2) + "\n").encode())
        except OSError as error:
            raise UserError(f"{folder.name} cannot be written to ({one_line(error)}): name another folder.") from None
        if RECORD not in folder.names():
            raise UserError(
                f"{folder.name} is about to be used by another run: name another folder, or start again later."
            )
    return agreed(folder, model)


def to_parquet(rows: Sequence[Row], version: str, before: bytes | None = None, without: Sequence[bytes] = ()) -> bytes:
    """A Parquet file with `COLUMNS`, in the order of the paths if it replaces another one.

    Args:
        before: the file to be replaced: its rows stay, but for those of the same paths.
        without: digests of paths whose rows do not stay either.

    Raises:
        pyarrow.ArrowException: before is no Parquet file of rows.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema()
    times = [None if row.modified is None else time_of(row.modified) for row in rows]
    told = [row._asdict() | {"modified": time, "model_version": version} for row, time in zip(rows, times, strict=True)]
    table = pa.Table.from_pylist(told, schema)
    if before is not None:
        old = parquet.read_table(io.BytesIO(before))
        there = [
            old[field.name].cast(field.type) if field.name in old.column_names else pa.nulls(len(old), field.type)
            for field in schema
        ]
        gone = np.concatenate([digests_of([row.path for row in rows]), np.array(without, "S16")])
        stay = ~np.isin(digests_of(old["path"].to_pylist()), gone)
        kept = pa.Table.from_arrays(there, schema=schema).filter(pa.array(stay))
        table = pa.concat_tables([kept, table]).sort_by("path")
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


def time_of(modified: int | None) -> int:
    """A time in ns as a row can hold it: UNKNOWN for None; beyond the years 1677 to 2262, the nearest."""
    return UNKNOWN if modified is None else max(UNKNOWN + 1, min(modified, np.iinfo(np.int64).max))


def digests_of(paths: Sequence[str]) -> np.ndarray:
    """128 bits a path, S16: in a store of 10^12 images, two would be taken for one with a chance of 10^-15."""
    return np.array([hashlib.blake2b(path.encode(), digest_size=16).digest() for path in paths], "S16")


def _schema() -> pa.Schema:
    import pyarrow as pa

    text = pa.string()
    time = pa.timestamp("ns", tz="UTC")
    types = (text, text, pa.float64(), pa.float64(), text, pa.bool_(), pa.int64(), time, text)
    return pa.schema(list(zip(COLUMNS, types, strict=True)))


def _rows_of(folder: Folder, name: str) -> tuple[np.ndarray, ...]:
    """Digests of the paths in a part, sizes, times, which have an error, and which one that may pass.

    A part of an earlier version lacks some: its rows do not say which content they are of.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        data = io.BytesIO(folder.read(name))
        there = parquet.read_schema(data).names
        table = parquet.read_table(data, columns=["path", "error", *({"retry", "size", "modified"} & set(there))])
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{folder.name}/{name} cannot be read ({one_line(error)}): if it is damaged, delete it, and its images are judged again."
        ) from None

    def numbers(column: str, missing: int) -> np.ndarray:
        if column not in there:
            return np.full(len(table), missing, np.int64)
        return table[column].cast(pa.int64()).fill_null(missing).to_numpy()

    digests = digests_of(table["path"].to_pylist())
    times = numbers("size", UNKNOWN), numbers("modified", UNKNOWN)
    return digests, *times, table["error"].is_valid().to_numpy(), numbers("retry", 0).astype(bool)
