"""What is said of an image, and the folder of Parquet files that keeps it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

import dfganext
from dfganext.data.trees import printable
from dfganext.errors import UserError, one_line
from dfganext.inputs import Found
from dfganext.scoring.model import Model
from dfganext.stores import CONNECTIONS, Folder

COLUMNS = ("path", "label", "p_fake", "error", "model_version")

RECORD = "_score.json"
"""In OUT, whose verdicts it holds. Readers of Parquet folders pass over names that begin so."""


class Row(NamedTuple):
    """What is said of one image, and whether there were bytes to say it of."""

    path: str
    label: str | None
    p_fake: float | None
    error: str | None
    data_read: bool


@dataclass(frozen=True)
class Scored:
    """The images that have a row, as sorted digests of their paths (S16), and which of those rows tell of an error (bool)."""

    digests: np.ndarray
    unread: np.ndarray

    @classmethod
    def read(cls, folder: Folder) -> Scored:
        """Collect them from all parts in a folder. UserError if one cannot be read."""
        names = sorted(name for name in folder.names() if name.startswith("part-") and name.endswith(".parquet"))
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            found = list(threads.map(lambda name: _rows_of(folder, name), names))
        digests = np.concatenate([np.empty(0, "S16"), *(one for one, _ in found)])
        unread = np.concatenate([np.empty(0, bool), *(one for _, one in found)])
        order = np.argsort(digests, kind="stable")
        return cls(digests[order], unread[order])

    def among(self, images: Sequence[Found]) -> tuple[np.ndarray, int]:
        """Which of the images have a row (bool), and how many of them have one with an error."""
        if not len(self.digests):
            return np.zeros(len(images), bool), 0
        wanted = digests_of([printable(image.path) for image in images])
        places = np.minimum(np.searchsorted(self.digests, wanted), len(self.digests) - 1)
        known = self.digests[places] == wanted
        return known, int(np.sum(self.unread[places[known]]))


def agreed(folder: Folder, model: Model) -> Model:
    """The model under the name by which a folder knows it. UserError where the folder holds anything but its verdicts."""
    names = folder.names()
    if RECORD not in names:
        if any(not name.startswith(".") for name in names):
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
            f"with {model.threshold:.6g}: name another folder, or that model with --model."
        )
    return replace(model, version=version)


def claim(folder: Folder, model: Model) -> None:
    """Write down whose verdicts a folder holds, where it does not say so yet. UserError if it cannot be written to."""
    record = {
        "model": {
            "version": model.version,
            "sha256": model.sha256,
            "threshold": model.threshold,
            "temperature": model.temperature,
        },
        "columns": COLUMNS,
        "dfganext": dfganext.__version__,
    }
    if RECORD not in folder.names():
        try:
            folder.write(RECORD, (json.dumps(record, indent=2) + "\n").encode())
        except OSError as error:
            raise UserError(f"{folder.name} cannot be written to ({one_line(error)}): name another folder.") from None


def to_parquet(rows: Sequence[Row], version: str) -> bytes:
    """A Parquet file with `COLUMNS`."""
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.string()
    schema = pa.schema(list(zip(COLUMNS, (text, text, pa.float64(), text, text), strict=True)))
    table = pa.Table.from_pylist([row._asdict() | {"model_version": version} for row in rows], schema)
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


def digests_of(paths: Sequence[str]) -> np.ndarray:
    """128 bits a path, S16: in a store of 10^12 images, two would be taken for one with a chance of 10^-15."""
    return np.array([hashlib.blake2b(path.encode(), digest_size=16).digest() for path in paths], "S16")


def _rows_of(folder: Folder, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Digests of the paths in a part, and which of them have an error."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(folder.read(name)), columns=["path", "error"])
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{folder.name}/{name} cannot be read ({one_line(error)}): if it is damaged, delete it, and its images are judged again."
        ) from None
    return digests_of(table["path"].to_pylist()), table["error"].is_valid().to_numpy()
