"""The manifest: one row per usable image, with its class, its hashes and its encoding; and a table of the files refused."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import imagehash
import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from tqdm import tqdm

from dfganext import images, labels
from dfganext.data import discovery
from dfganext.data.discovery import Reject, SourceFile, Unread, label_of, printable
from dfganext.data.sources import Collection
from dfganext.errors import UserError
from dfganext.runtime import map_ordered
from dfganext.settings import Download

TYPES: dict[str, Any] = {
    "path": str,
    "label": str,
    "sha256": str,
    "phash": str,
    "phash_mirrored": str,
    "width": "int64",
    "height": "int64",
    "format": str,
    "mode": str,
    "quantisation": str,
    "bytes": "int64",
}
"""The columns. path is relative to the raw folder; width and height are as decoded, after EXIF rotation; phash is 256 bits in
hexadecimal, phash_mirrored the same of the left-right mirror image; quantisation holds the mean of each JPEG quantisation table,
in table order, and is empty for other formats."""

PHASH_SIDE = 16

MAX_NAME_BYTES = 240
"""Of a file or a folder; file systems take 255, and a number may be added."""


class Built(NamedTuple):
    """The result of `build`: one row per image sorted by path, and one row per refused file sorted by source."""

    manifest: pd.DataFrame
    rejects: pd.DataFrame

    @property
    def counts(self) -> dict[str, int]:
        """Images of each class."""
        return {label: int((self.manifest.label == label).sum()) for label in labels.NAMES}


def build(collection: Collection, raw: Path, settings: Download, workers: int = 0) -> Built:
    """Bring every usable image, bytes unchanged, to raw/real or raw/fake, and describe it.

    An image keeps its path without the folder that tells its class (train/real/7.jpg becomes real/train/7.jpg); if two paths
    collide, the later in the order of sources gets a number. Files are hard links where the file system allows, else copies. All
    byte-identical images of one class stay; byte-identical images of both classes are all refused. The result does not depend on
    the number of workers, and memory holds a few encoded images and one decoded image per worker.

    Args:
        collection: from `sources.collect`.
        raw: the folder to make; its earlier content is removed.
        settings: the section `download`, for its limits of size.
        workers: threads that decode (0: the caller's thread).

    Raises:
        UserError: the folder cannot be written, as when the disk is full.
    """
    if raw.exists():
        shutil.rmtree(raw)
    for label in labels.NAMES:
        (raw / label).mkdir(parents=True)
    candidates, rejects = _candidates(collection)
    rows: list[dict[str, Any]] = []
    outcomes = map_ordered(lambda item: _take(*item, raw, settings), candidates, workers)
    for outcome in tqdm(outcomes, total=len(candidates), desc="images", unit="image", disable=None):
        if isinstance(outcome, Reject):
            rejects.append(outcome)
        else:
            rows.append(outcome)

    table = pd.DataFrame(rows, columns=["source", *TYPES])
    in_both = table.groupby("sha256").label.transform("nunique") > 1
    for row in table[in_both].to_dict("records"):
        (raw / row["path"]).unlink()
        detail = f"images of both classes have its sha256, {row['sha256']}"
        rejects.append(Reject(row["source"], "in both classes", detail))
    manifest = table[~in_both].sort_values("path", ignore_index=True)[list(TYPES)].astype(TYPES)
    return Built(manifest, pd.DataFrame(sorted(rejects), columns=list(Reject._fields)).astype(str))


def require_both_classes(built: Built, rejects: Path) -> None:
    """UserError if a class has no usable image; it refers to the table of rejects at `rejects`."""
    counts = built.counts
    if not all(counts.values()):
        raise UserError(
            f"download found {counts['real']} usable real and {counts['fake']} usable fake images, and both classes are needed: "
            f"put images below folders named real and fake, and see {rejects} for the {len(built.rejects)} files refused."
        )


def read(path: Path) -> pd.DataFrame:
    """Read a manifest; columns as in TYPES, text exactly as written ("001", "NA" and "" stay). UserError if it is missing or invalid."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8")
        return table[list(TYPES)].astype(TYPES)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro download` to make it.") from None
    except (KeyError, ValueError):
        raise UserError(
            f"{path} is not a manifest of this version: run `dvc repro --force download` to make it again."
        ) from None


def perceptual_hashes(image: np.ndarray) -> tuple[str, str]:
    """256-bit pHash of a uint8 RGB image, (height, width, 3), and of its left-right mirror image.

    ImageHash's: which of the 16 x 16 lowest frequencies of a DCT are above their median; 64 hexadecimal digits.
    """
    side = 4 * PHASH_SIDE  # ImageHash's own size: shrunk here once for both hashes
    small = Image.fromarray(image).convert("L").resize((side, side), Image.Resampling.LANCZOS)
    phash, mirrored = (imagehash.phash(one, hash_size=PHASH_SIDE) for one in (small, ImageOps.mirror(small)))
    return str(phash), str(mirrored)


def _candidates(collection: Collection) -> tuple[list[tuple[SourceFile, PurePosixPath]], list[Reject]]:
    """Files to try, in the order of their sources, each with its path below the raw folder; and the rejects so far."""
    rejects = list(collection.rejects)
    candidates: list[tuple[SourceFile, PurePosixPath]] = []
    taken: set[str] = set()  # without case, for file systems that ignore it
    for file in sorted(collection.files, key=lambda file: file.source):
        label = label_of(file.path)
        if label is None:
            rejects.append(Reject(file.source, "neither real nor fake", "no folder above it is named real or fake"))
            continue
        wanted = path = _without_class(label, file.path)
        number = 1
        while str(path).lower() in taken:
            number += 1
            path = wanted.with_stem(f"{wanted.stem}-{number}")
        taken.add(str(path).lower())
        candidates.append((file, path))
    return candidates, rejects


def _without_class(label: str, path: PurePosixPath) -> PurePosixPath:
    """train/real/7.jpg -> real/train/7.jpg; each name is one line of UTF-8 without a backslash, at most `MAX_NAME_BYTES` long."""
    parts = [_shortened(printable(part).replace("\\", "_")) for part in path.parts]
    del parts[max(i for i, part in enumerate(parts[:-1]) if part.lower() == label)]
    return PurePosixPath(label, *parts)


def _shortened(name: str) -> str:
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    suffix = PurePosixPath(name).suffix[-16:]
    return discovery.shortened(name, MAX_NAME_BYTES - len(suffix.encode())) + suffix


def _take(file: SourceFile, path: PurePosixPath, raw: Path, settings: Download) -> dict[str, Any] | Reject:
    """Read, decode and describe one file, and put it in place; returns its row, with its source."""
    image = read_image(file, settings.max_megapixels, settings.min_side)
    if isinstance(image, Reject):
        return image
    _place(file.file, image.data, raw / path)
    return {"source": file.source, "path": path.as_posix(), "label": path.parts[0], **image.row}


class SourceImage(NamedTuple):
    """data: the file's bytes. pixels: uint8 (height, width, 3). row: its row of a manifest, without path and label."""

    data: bytes
    pixels: np.ndarray
    row: dict[str, Any]


def read_image(file: SourceFile, max_megapixels: float, min_side: int) -> SourceImage | Reject:
    """Read, decode and describe one file; a Reject if it is not a usable image."""
    data = discovery.read(file.file)
    if isinstance(data, Unread):
        return Reject(file.source, "unreadable" if data.temporary else "too large", data.reason)
    try:
        pixels = images.decode(data, max_megapixels, min_side)
        header = images.header(data, max_megapixels, min_side)
    except images.ImageError as error:
        return Reject(file.source, error.reason, str(error))
    phash, phash_mirrored = perceptual_hashes(pixels)
    row = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": phash,
        "phash_mirrored": phash_mirrored,
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "format": header.format,
        "mode": header.mode,
        "quantisation": " ".join(f"{mean:g}" for mean in header.quantisation),
        "bytes": len(data),
    }
    return SourceImage(data, pixels, row)


def _place(file: Path, data: bytes, place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.resolve(), place)  # resolved: a link would become a second link, not a file
        except OSError:  # another file system, one without hard links, or a file of another owner
            place.write_bytes(data)
    except OSError as error:
        raise UserError(
            f"{place} cannot be written ({error.strerror}): make room or correct the permissions."
        ) from error
