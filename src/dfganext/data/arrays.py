"""Images at the size a model reads, as one memory-mapped uint8 array a split, beside an index of what each row is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from dfganext import files, images
from dfganext.data.split import SPLITS
from dfganext.errors import UserError
from dfganext.labels import index_of
from dfganext.settings import Resize

INDEX_FILE = "index.csv"

IN_FLIGHT = 64
"""Images that are decoded or wait for it: enough that no thread is idle while the first one is written."""


@dataclass(frozen=True)
class Images:
    """One split: pixels uint8 (n, size, size, 3), labels int64 (n,) with 0 real and 1 fake, n paths below raw/, and groups int64
    (n,), the near-duplicate group of each image."""

    pixels: np.ndarray
    labels: np.ndarray
    paths: list[str]
    groups: np.ndarray

    def only(self, label: int) -> np.ndarray:
        """Row numbers of one class."""
        return np.flatnonzero(self.labels == label)


def write(split: pd.DataFrame, raw: Path, folder: Path, size: int, resize: Resize, workers: int) -> None:
    """Decode and prepare every image of a split table into `folder`: train.npy, validation.npy, test.npy, index.csv.

    Bytes do not depend on `workers`; memory holds a few images at a time.

    Args:
        split: columns path, label, split, group.
        raw: the folder the paths are relative to.
        size: pixels a side.
        resize: as `images.prepare` has it.

    Raises:
        UserError: an image cannot be read any more, or the folder cannot be written, as when the disk is full.
    """
    index = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for name in SPLITS:
                rows = split[split.split == name]
                jobs = ((raw / path, size, resize) for path in rows.path)
                arrays = tqdm(_ordered(pool, jobs), f"{name} at {size} px", len(rows), disable=None)
                _write_array(folder / f"{name}.npy", arrays, (len(rows), size, size, 3))
                columns = {"path": rows.path, "label": rows.label, "group": rows.group}
                index.append(pd.DataFrame({"split": name, "row": range(len(rows)), **columns}))
        files.write_table(folder / INDEX_FILE, pd.concat(index))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): make room or mend the permissions.") from error


def read(folder: Path, split: str) -> Images:
    """One split as `write` left it, pixels memory-mapped. UserError if the folder has none."""
    try:
        index = pd.read_csv(folder / INDEX_FILE, dtype={"path": str, "label": str})
        pixels = np.load(folder / f"{split}.npy", mmap_mode="r")
    except FileNotFoundError:
        raise UserError(f"{folder} holds no resized images; run `dvc repro resize` first.") from None
    rows = index[index.split == split]
    labels = np.array([index_of(label) for label in rows.label], np.int64)
    return Images(pixels, labels, list(rows.path), rows.group.to_numpy(np.int64))


def _write_array(path: Path, rows: Iterable[np.ndarray], shape: tuple[int, ...]) -> None:
    """A .npy of uint8, row by row. Not through a memory map: there, a full disk kills the process in place of an error."""
    with path.open("wb") as file:
        descr = np.lib.format.dtype_to_descr(np.dtype(np.uint8))
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        for row in rows:
            file.write(np.ascontiguousarray(row).data)


def _ordered(pool: ThreadPoolExecutor, jobs: Iterator[tuple[Path, int, Resize]]) -> Iterator[np.ndarray]:
    """Results in the order of the jobs, a bounded number in flight."""
    waiting = deque(pool.submit(_pixels, *job) for job in islice(jobs, IN_FLIGHT))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(_pixels, *job) for job in islice(jobs, 1))


def _pixels(path: Path, size: int, resize: Resize) -> np.ndarray:
    try:
        decoded = images.decode(path.read_bytes(), max_megapixels=float("inf"), min_side=1)
        return images.prepare(decoded, size, resize.interpolation, resize.reencode)
    except (OSError, images.ImageError) as error:
        raise UserError(f"{path} can no longer be read ({error}); run `dvc repro download` again.") from error
