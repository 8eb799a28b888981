"""The manifest: one row per usable image, with its class, its hashes and its encoding; and a table of the files refused."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import imagehash
import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from tqdm import tqdm

from dfganext import images, labels
from dfganext.data import discovery
from dfganext.data.discovery import CONTROL_CHARACTERS, Reject, SourceFile, Unread, label_of, shortened
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

REJECT_TYPES: dict[str, Any] = {"source": str, "reason": str, "detail": str}
"""reason is one of a few fixed phrases, for counting; detail says more."""

PHASH_SIDE = 16

NAME_BYTES = 255
"""The longest file name that all common file systems allow, in UTF-8."""

# Part of ImageError's message -> the fixed phrase
_REASONS = {
    "is empty": "empty",
    "not an image": "not an image",
    "megapixels": "too large",
    "fewer than": "too small",
    "damaged": "damaged or truncated",
}


@dataclass(frozen=True)
class Built:
    """The result of `build`: one row per image, one row per refused file, and counts for the metrics."""

    manifest: pd.DataFrame
    rejects: pd.DataFrame
    summary: dict[str, Any]


class _Image(NamedTuple):
    """A manifest row and the source of the image; no pixels."""

    source: str
    row: dict[str, Any]


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

    Returns:
        The manifest sorted by path, the rejects sorted by source, and
        {"images": {"real", "fake"}, "rejects": {"total", reason: count, ...}, "bytes": n}.
    """
    _refuse_overlap(collection, raw)
    candidates, rejects = _candidates(collection)
    if raw.exists():
        shutil.rmtree(raw)
    for folder in {raw / label for label in labels.NAMES} | {(raw / path).parent for path in candidates}:
        folder.mkdir(parents=True, exist_ok=True)

    def take(candidate: tuple[PurePosixPath, SourceFile]) -> _Image | Reject:
        return _take(candidate[1], candidate[0], raw, settings)

    taken: list[_Image] = []
    outcomes = map_ordered(take, candidates.items(), workers)
    for outcome in tqdm(outcomes, total=len(candidates), desc="images", unit="image", disable=None):
        if isinstance(outcome, Reject):
            rejects.append(outcome)
        else:
            taken.append(outcome)

    contradictions = _contradictions(taken)
    for path in contradictions:
        (raw / path).unlink()
    _remove_empty_folders(raw)
    rejects += contradictions.values()
    rows = sorted((row for _, row in taken if row["path"] not in contradictions), key=lambda row: row["path"])
    manifest = pd.DataFrame(rows, columns=list(TYPES)).astype(TYPES)
    table = pd.DataFrame(sorted(rejects), columns=list(REJECT_TYPES)).astype(REJECT_TYPES)
    return Built(manifest, table, _summary(manifest, table))


def require_both_classes(built: Built, rejects: Path) -> None:
    """UserError if a class has no usable image; it refers to the table of rejects at `rejects`."""
    counts = built.summary["images"]
    if all(counts.values()):
        return
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


def _refuse_overlap(collection: Collection, raw: Path) -> None:
    """ValueError if making the raw folder would delete a file of the source."""
    target = raw.resolve()
    for folder in {file.file.parent for file in collection.files}:
        if folder.resolve().is_relative_to(target):
            raise ValueError(f"{raw} and {folder} overlap")


def _candidates(collection: Collection) -> tuple[dict[PurePosixPath, SourceFile], list[Reject]]:
    """Files to try, keyed by their path below the raw folder, in the order of their sources; and the rejects so far."""
    rejects = list(collection.rejects)
    labelled: list[tuple[str, SourceFile]] = []
    for file in sorted(collection.files, key=lambda file: file.source):
        label = label_of(file.path)
        if label is None:
            rejects.append(Reject(file.source, "neither real nor fake", "no folder above it is named real or fake"))
        else:
            labelled.append((label, file))
    return _places(labelled), rejects


def _places(labelled: list[tuple[str, SourceFile]]) -> dict[PurePosixPath, SourceFile]:
    wanted = [_without_class(label, file.path) for label, file in labelled]
    # Compared without case, for file systems that ignore it; a file must not have the name of a folder either
    taken = {str(parent).lower() for path in wanted for parent in path.parents}
    places = {}
    for path, (_, file) in zip(wanted, labelled, strict=True):
        place, number = path, 1
        while str(place).lower() in taken:
            number += 1
            place = _numbered(path, number)
        taken.add(str(place).lower())
        places[place] = file
    return places


def _numbered(path: PurePosixPath, number: int) -> PurePosixPath:
    """7.png -> 7-2.png; a long name is shortened."""
    end = f"-{number}{path.suffix}"
    stem = path.stem
    if len(end.encode()) >= NAME_BYTES:  # the suffix fills the name
        end, stem = f"-{number}", path.name
    return path.with_name(shortened(stem, NAME_BYTES - len(end.encode())) + end)


def _without_class(label: str, path: PurePosixPath) -> PurePosixPath:
    parts = list(path.parts)
    position = max(i for i, part in enumerate(parts[:-1]) if part.lower() == label)
    del parts[position]
    # Names go into tables and addresses: no control characters, no backslashes, no bytes that are not UTF-8
    clean = (CONTROL_CHARACTERS.sub("_", re.sub(r"[\\\ud800-\udfff]", "_", part)) for part in parts)
    return PurePosixPath(label, *clean)


def _take(file: SourceFile, path: PurePosixPath, raw: Path, settings: Download) -> _Image | Reject:
    """Read, decode and describe one file, and put it in place."""
    # no image within the pixel limit has more bytes than this
    data = discovery.read(file.file, max_bytes=int(settings.max_megapixels * 8e6) + (64 << 20))
    if isinstance(data, Unread):
        return Reject(file.source, "unreadable" if data.temporary else "too large", data.reason)
    try:
        row = _description(data, settings)
    except images.ImageError as error:
        reason = next((reason for part, reason in _REASONS.items() if part in str(error)), "not usable")
        return Reject(file.source, reason, str(error))
    _place(file.file, data, raw / path)
    return _Image(file.source, {"path": path.as_posix(), "label": path.parts[0], **row})


def _description(data: bytes, settings: Download) -> dict[str, Any]:
    """The columns of the manifest but path and label. ImageError if the bytes are not a usable image."""
    pixels = images.decode(data, settings.max_megapixels, settings.min_side)
    header = images.header(data, settings.max_megapixels, settings.min_side)
    quantisation = images.jpeg_quantisation(data)
    phash, phash_mirrored = perceptual_hashes(pixels)
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": phash,
        "phash_mirrored": phash_mirrored,
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "format": header.format,
        "mode": header.mode,
        "quantisation": " ".join(f"{mean:g}" for mean in quantisation),
        "bytes": len(data),
    }


def _place(file: Path, data: bytes, place: Path) -> None:
    try:
        os.link(file.resolve(), place)  # resolved: a link would become a second link, not a file
        return
    except OSError:
        pass  # another file system, one without hard links, or a file of another owner
    try:
        place.write_bytes(data)
    except OSError as error:
        raise UserError(
            f"{place} cannot be written ({error.strerror}): make room or correct the permissions."
        ) from error


def _contradictions(taken: list[_Image]) -> dict[str, Reject]:
    """{path: reject} of each image whose bytes are also in the other class."""
    first: dict[tuple[str, str], str] = {}
    for image in taken:
        first.setdefault((image.row["sha256"], image.row["label"]), image.source)
    found = {}
    for image in taken:
        other = "fake" if image.row["label"] == "real" else "real"
        counterpart = first.get((image.row["sha256"], other))
        if counterpart is not None:
            detail = f"the same bytes are {counterpart}, which is {other}"
            found[image.row["path"]] = Reject(image.source, "in both classes", detail)
    return found


def _remove_empty_folders(raw: Path) -> None:
    for folder, _, _ in os.walk(raw, topdown=False):
        if Path(folder).parent != raw.parent and not any(Path(folder).iterdir()):
            Path(folder).rmdir()


def _summary(manifest: pd.DataFrame, rejects: pd.DataFrame) -> dict[str, Any]:
    counts = Counter(manifest["label"])
    return {
        "images": {label: counts[label] for label in labels.NAMES},
        "rejects": {"total": len(rejects)} | dict(sorted(Counter(rejects["reason"]).items())),
        "bytes": int(manifest["bytes"].sum()),
    }
