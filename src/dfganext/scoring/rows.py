"""The rows: one per image, in a folder of Parquet files that belongs to one model."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

import dfganext
from dfganext.data.discovery import Found, printable
from dfganext.errors import UserError, one_line
from dfganext.scoring.model import Model
from dfganext.scoring.stores import CONNECTIONS, Folder

SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "label": pa.string(),
        "p_fake": pa.float64(),
        "threshold": pa.float64(),
        "decision": pa.string(),
        "reason": pa.string(),
        "error": pa.string(),
        "retry": pa.bool_(),
        "size": pa.int64(),
        "modified": pa.timestamp("ns", tz="UTC"),
        "model_version": pa.string(),
    }
)
"""Of the Parquet files. A column that a file of an earlier version lacks is read as nulls."""

RECORD = "_score.json"
"""The file that names the folder's model. Readers of Parquet folders skip names that begin with an underscore."""

UNKNOWN = np.iinfo(np.int64).min
"""An unknown size or time."""

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
    decision: str | None
    reason: str | None
    error: str | None
    retry: bool
    size: int
    modified: int | None
    data_read: bool


class State(NamedTuple):
    """What the folder's rows say of N images, each array (N,).

    known: there is a row. valid: the row is of the image's present content and has no error that may pass. unreadable: the row is
    valid and has an error. file: index of the row's file.
    """

    known: np.ndarray
    valid: np.ndarray
    unreadable: np.ndarray
    file: np.ndarray


@dataclass(frozen=True)
class ScoredRows:
    """What decides whether an image must be scored again, of all rows of a folder.

    keys: structured (N,), sorted by the digest of the path; file is an index into names.
    """

    keys: np.ndarray
    names: Sequence[str]

    @classmethod
    def read(cls, folder: Folder) -> ScoredRows:
        """Read the rows of all files in a folder. UserError if a file cannot be read."""
        names = sorted(name for name in folder.names() if name.startswith("part-") and name.endswith(".parquet"))
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            return cls.of(names, list(threads.map(lambda name: _keys_of(folder, name), names)))

    @classmethod
    def of(cls, names: Sequence[str], keys: Sequence[np.ndarray]) -> ScoredRows:
        """From the keys of each file, as `make_keys` gives them."""
        together = np.concatenate([np.empty(0, _KEYS), *keys])
        together["file"] = np.repeat(np.arange(len(names)), [len(of_file) for of_file in keys])
        return cls(together[np.argsort(together["digest"], kind="stable")], names)

    def state_of(self, images: Sequence[Found]) -> State:
        """What the rows say of these images."""
        if not len(self.keys):
            none = np.zeros(len(images), bool)
            return State(none, none, none, none)
        digests, wanted = self.keys["digest"], digests_of([printable(image.path) for image in images])
        rows = self.keys[np.minimum(np.searchsorted(digests, wanted), len(digests) - 1)]
        known = rows["digest"] == wanted
        same = rows["size"] == np.array([image.size for image in images], np.int64)
        same &= rows["modified"] == np.array([time_of(image.modified) for image in images], np.int64)
        valid = known & same & ~rows["retry"]
        return State(known, valid, valid & rows["unreadable"], rows["file"])


def claim(folder: Folder, model: Model) -> Model:
    """The model, under the version name that the folder has recorded for it; recorded now if the folder has none.

    Of several runs with different models at the same time, one gets the folder.

    Raises:
        UserError: the folder holds another model's rows, or files that are no rows, or cannot be written to.
    """
    names = folder.names()
    if names and RECORD not in names:
        raise UserError(f"{folder.name} holds other files than `dfganext score` writes: name a new or an empty folder.")
    record = {
        "model": {
            "version": model.version,
            "sha256": model.sha256,
            "threshold": model.threshold,
            "temperature": model.temperature if model.calibrated else None,
        },
        "columns": SCHEMA.names,
        "dfganext": dfganext.__version__,
    }
    try:
        folder.create(RECORD, (json.dumps(record, indent=2) + "\n").encode())
        recorded = json.loads(folder.read(RECORD))["model"]
        same = recorded["sha256"] == model.sha256
        version, threshold = recorded["version"], recorded["threshold"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{folder.name}/{RECORD} cannot be written or read ({one_line(error)}): name another folder."
        ) from None
    if not same:
        raise UserError(
            f"{folder.name} holds rows of another model, {version} with threshold {threshold:.6g}, not of {model.version} "
            f"with {model.threshold:.6g}: name another folder, or that model with --model and --threshold."
        )
    return replace(model, version=version)


def to_parquet(rows: Sequence[Row], version: str, old: bytes | None = None) -> bytes:
    """A Parquet file with the columns of SCHEMA.

    Args:
        version: value of the column model_version.
        old: the file that is replaced: its rows of other paths are kept, and the new file is sorted by path.

    Raises:
        pyarrow.ArrowException: old is not a Parquet file of rows.
    """
    values = [
        row._asdict() | {"modified": None if row.modified is None else time_of(row.modified), "model_version": version}
        for row in rows
    ]
    table = pa.Table.from_pylist(values, SCHEMA)
    if old is not None:
        kept = parquet.read_table(io.BytesIO(old), schema=SCHEMA)
        replaced = pc.is_in(kept["path"], table["path"])
        table = pa.concat_tables([kept.filter(pc.invert(replaced)), table]).sort_by("path")
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


def _keys_of(folder: Folder, name: str) -> np.ndarray:
    """The keys of a file's rows. UserError if it cannot be read."""
    columns = ["path", "error", "retry", "size", "modified"]
    try:
        table = parquet.read_table(io.BytesIO(folder.read(name)), columns=columns, schema=SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{folder.name}/{name} cannot be read ({one_line(error)}): if it is damaged, delete it, and its images are scored again."
        ) from None
    sizes, modified = (table[column].cast(pa.int64()).fill_null(UNKNOWN).to_numpy() for column in ("size", "modified"))
    retry = table["retry"].fill_null(False).to_numpy()
    return make_keys(table["path"].to_pylist(), sizes, modified, table["error"].is_valid().to_numpy(), retry)
