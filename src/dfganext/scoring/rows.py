"""The rows: one per image, in a folder of Parquet files that belongs to one model."""

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
from dfganext.scoring.stores import CONNECTIONS, Folder

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("path", "label", "p_fake", "threshold", "error", "retry", "size", "modified", "model_version")

RECORD = "_score.json"
"""The file that names the folder's model. Readers of Parquet folders skip names that begin with an underscore."""

UNKNOWN = np.iinfo(np.int64).min
"""An unknown size or time; as a time, numpy's and Parquet's "not a time"."""

_KEYS = np.dtype(
    [("digest", "S16"), ("size", "i8"), ("modified", "i8"), ("unreadable", "?"), ("retry", "?"), ("file", "i8")]
)


class Row(NamedTuple):
    """The prediction for an image of this size and modification time (ns).

    retry: the error may pass, so that the next run tries again. data_read: the image's bytes could be read.
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
    """What the folder's rows say of N images, each array (N,).

    known: there is a row. valid: the row is of the image's present content and has no error that may pass. unreadable: the row is
    valid and has an error. unversioned: the row has no size and time. file: index of the row's file.
    """

    known: np.ndarray
    valid: np.ndarray
    unreadable: np.ndarray
    unversioned: np.ndarray
    file: np.ndarray


@dataclass(frozen=True)
class ScoredRows:
    """What decides whether an image must be scored again, of all rows of a folder.

    keys: structured (N,), sorted by the digest of the path; sizes and times of unversioned rows are UNKNOWN; file is an index
    into names. counts: rows per file.
    """

    keys: np.ndarray
    names: Sequence[str]
    counts: np.ndarray

    @classmethod
    def read(cls, folder: Folder) -> ScoredRows:
        """Read the rows of all files in a folder. UserError if a file cannot be read."""
        names = sorted(name for name in folder.names() if name.startswith("part-") and name.endswith(".parquet"))
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            return cls.of(names, list(threads.map(lambda name: _keys_of(folder, name), names)))

    @classmethod
    def of(cls, names: Sequence[str], keys: Sequence[np.ndarray]) -> ScoredRows:
        """From the keys of each file, as `make_keys` gives them."""
        counts = np.array([len(of_file) for of_file in keys], int)
        together = np.concatenate([np.empty(0, _KEYS), *keys])
        together["file"] = np.repeat(np.arange(len(names)), counts)
        return cls(together[np.argsort(together["digest"], kind="stable")], names, counts)

    def state_of(self, images: Sequence[Found]) -> State:
        """What the rows say of these images."""
        known, places = self._find([image.path for image in images])
        if not len(self.keys):
            return State(known, known, known, known, places)
        rows = self.keys[places]
        same = rows["size"] == np.array([image.size for image in images], np.int64)
        same &= rows["modified"] == np.array([time_of(image.modified) for image in images], np.int64)
        valid = known & same & ~rows["retry"]
        return State(known, valid, valid & rows["unreadable"], known & (rows["size"] == UNKNOWN), rows["file"])

    def folder_errors(self, folders: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """File and digest of rows that say that one of these folders could not be listed."""
        known, places = self._find(folders)
        rows = self.keys[places[known]]
        yield from self._locations(rows[rows["retry"]])

    def duplicates(self) -> Iterator[tuple[int, bytes]]:
        """File and digest of all rows of a path but the first; a worker that outlives its run may write such rows."""
        digests = self.keys["digest"]
        yield from self._locations(self.keys[1:][digests[1:] == digests[:-1]])

    def _locations(self, rows: np.ndarray) -> Iterator[tuple[int, bytes]]:
        return ((int(row["file"]), bytes(row["digest"])) for row in rows)

    def _find(self, paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Whether each path has a row, and the row's place in keys (any place where it has none)."""
        if not len(self.keys):
            return np.zeros(len(paths), bool), np.zeros(len(paths), int)
        digests, wanted = self.keys["digest"], digests_of([printable(path) for path in paths])
        places = np.minimum(np.searchsorted(digests, wanted), len(digests) - 1)
        return digests[places] == wanted, places


def check_model(folder: Folder, model: Model) -> Model:
    """The model, under the version name that the folder has recorded for it.

    Raises:
        UserError: the folder holds another model's rows, or files that are no rows.
    """
    names = folder.names()
    if RECORD not in names:
        if any(not name.startswith(".") for name in names):
            raise UserError(
                f"{folder.name} holds other files than `dfganext score` writes: name a new or an empty folder."
            )
        return model
    try:
        recorded = json.loads(folder.read(RECORD))["model"]
        same = recorded["sha256"] == model.sha256
        version, threshold = recorded["version"], recorded["threshold"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder.name}/{RECORD} cannot be read ({one_line(error)}): name another folder.") from None
    if not same:
        raise UserError(
            f"{folder.name} holds rows of another model, {version} with threshold {threshold:.6g}, not of {model.version} "
            f"with {model.threshold:.6g}: name another folder, or that model with --model and --threshold."
        )
    return replace(model, version=version)


def claim(folder: Folder, model: Model) -> Model:
    """Record the model in a folder that has none yet; returns the model as `check_model` does.

    Of several runs with different models at the same time, one gets the folder.

    Raises:
        UserError: the folder cannot be written to, or holds another model's rows.
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
    try:
        folder.create(RECORD, (json.dumps(record, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{folder.name} cannot be written to ({one_line(error)}): name another folder.") from None
    return check_model(folder, model)


def to_parquet(rows: Sequence[Row], version: str, old: bytes | None = None, removed: Sequence[bytes] = ()) -> bytes:
    """A Parquet file with `COLUMNS`.

    Args:
        version: value of the column model_version.
        old: the file that is replaced: its rows of other paths are kept, and the new file is sorted by path.
        removed: digests of further paths whose old rows are not kept.

    Raises:
        pyarrow.ArrowException: old is not a Parquet file of rows.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema()
    times = [None if row.modified is None else time_of(row.modified) for row in rows]
    values = [
        row._asdict() | {"modified": time, "model_version": version} for row, time in zip(rows, times, strict=True)
    ]
    table = pa.Table.from_pylist(values, schema)
    if old is not None:
        kept = parquet.read_table(io.BytesIO(old))
        replaced = np.concatenate([digests_of([row.path for row in rows]), np.array(removed, "S16")])
        kept = kept.filter(pa.array(~np.isin(digests_of(kept["path"].to_pylist()), replaced)))
        kept = kept.select([name for name in COLUMNS if name in kept.column_names])
        # an earlier version wrote fewer columns
        table = pa.concat_tables([kept, table], promote_options="permissive").select(COLUMNS).cast(schema)
        table = table.sort_by("path")
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


def time_of(modified: int | None) -> int:
    """A time in ns as a row can hold it: UNKNOWN for None; before 1677 and after 2262, the nearest possible time."""
    return UNKNOWN if modified is None else max(UNKNOWN + 1, min(modified, np.iinfo(np.int64).max))


def digests_of(paths: Sequence[str]) -> np.ndarray:
    """128-bit digests of paths, S16 (N,): among 10^12 paths, the probability of a collision is about 10^-15."""
    return np.array([hashlib.blake2b(path.encode(), digest_size=16).digest() for path in paths], "S16")


def make_keys(
    paths: Sequence[str], sizes: np.ndarray, modified: np.ndarray, unreadable: np.ndarray, retry: np.ndarray
) -> np.ndarray:
    """The keys of one file's rows, unsorted; see `ScoredRows`."""
    keys = np.zeros(len(paths), _KEYS)
    keys["digest"], keys["size"], keys["modified"] = digests_of(paths), sizes, modified
    keys["unreadable"], keys["retry"] = unreadable, retry
    return keys


def _schema() -> pa.Schema:
    import pyarrow as pa

    text = pa.string()
    time = pa.timestamp("ns", tz="UTC")
    types = (text, text, pa.float64(), pa.float64(), text, pa.bool_(), pa.int64(), time, text)
    return pa.schema(list(zip(COLUMNS, types, strict=True)))


def _keys_of(folder: Folder, name: str) -> np.ndarray:
    """The keys of a file's rows. Files of earlier versions lack the columns retry, size and modified."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        data = io.BytesIO(folder.read(name))
        present = {"retry", "size", "modified"} & set(parquet.read_schema(data).names)
        table = parquet.read_table(data, columns=["path", "error", *present])
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{folder.name}/{name} cannot be read ({one_line(error)}): if it is damaged, delete it, and its images are scored again."
        ) from None

    def integers(column: str, missing: int) -> np.ndarray:
        if column not in present:
            return np.full(len(table), missing, np.int64)
        return table[column].cast(pa.int64()).fill_null(missing).to_numpy()

    unreadable = table["error"].is_valid().to_numpy()
    sizes, modified = integers("size", UNKNOWN), integers("modified", UNKNOWN)
    return make_keys(table["path"].to_pylist(), sizes, modified, unreadable, integers("retry", 0).astype(bool))
