"""Images at the input size of a model: one memory-mapped uint8 array per split, and an index of their rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from dfganext import files, images
from dfganext.data.split import SPLITS
from dfganext.errors import UserError
from dfganext.labels import index_of
from dfganext.runtime import map_ordered
from dfganext.settings import Resize

INDEX_FILE = "index.csv"


@dataclass(frozen=True)
class Images:
    """One split: pixels uint8 (n, size, size, 3), labels int64 (n,) with 0 real and 1 fake, n paths relative to the raw folder, and
    groups int64 (n,), the near-duplicate group of each image."""

    pixels: np.ndarray
    labels: np.ndarray
    paths: list[str]
    groups: np.ndarray

    def only(self, label: int) -> np.ndarray:
        """Row numbers of one class."""
        return np.flatnonzero(self.labels == label)


def write(split: pd.DataFrame, raw: Path, folder: Path, size: int, resize: Resize, workers: int) -> None:
    """Decode and prepare every image of a split table into `folder`: train.npy, validation.npy, test.npy, index.csv.

    The bytes do not depend on `workers`; memory holds a few images at a time.

    Args:
        split: columns path, label, split, group.
        raw: the folder that the paths are relative to.
        size: pixels per side.
        resize: the settings that `images.prepare` takes.
        workers: threads that decode (0: the caller's thread).

    Raises:
        UserError: an image can no longer be read, or the folder cannot be written, as when the disk is full.
    """

    def pixels(path: str) -> np.ndarray:
        return images.prepare(images.read_image(raw / path), size, resize.interpolation, resize.reencode)

    index = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in SPLITS:
            rows = split[split.split == name]
            arrays = tqdm(map_ordered(pixels, rows.path, workers), f"{name} at {size} px", len(rows), disable=None)
            _write_array(folder / f"{name}.npy", arrays, (len(rows), size, size, 3))
            index.append(rows[["path", "label", "group"]].assign(split=name, row=range(len(rows))))
        files.write_table(folder / INDEX_FILE, pd.concat(index)[["split", "row", "path", "label", "group"]])
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): make room or correct the permissions."
        ) from error


def read(folder: Path, split: str) -> Images:
    """One split that `write` wrote, pixels memory-mapped. UserError if the folder has none."""
    try:
        index = pd.read_csv(folder / INDEX_FILE, dtype={"path": str, "label": str})
        pixels = np.load(folder / f"{split}.npy", mmap_mode="r")
    except FileNotFoundError:
        raise UserError(f"{folder} holds no resized images; run `dvc repro resize` first.") from None
    rows = index[index.split == split]
    labels = np.array([index_of(label) for label in rows.label], np.int64)
    return Images(pixels, labels, list(rows.path), rows.group.to_numpy(np.int64))


def _write_array(path: Path, rows: Iterable[np.ndarray], shape: tuple[int, ...]) -> None:
    """Write a .npy file of uint8 row by row; through a memory map, a full disk would kill the process and raise no error."""
    with path.open("wb") as file:
        descr = np.lib.format.dtype_to_descr(np.dtype(np.uint8))
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        for row in rows:
            file.write(np.ascontiguousarray(row).data)
