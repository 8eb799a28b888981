"""The manifest: every usable image once, with its class, its hashes and how it was encoded; and the table of all the others."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import imagehash
import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from tqdm import tqdm

from dfganext import images, labels
from dfganext.data.sources import Collection
from dfganext.data.trees import Found, Reject, label_of, shortened, walk
from dfganext.errors import UserError
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
"""reason is one of a few fixed phrases, to count by; detail says more."""

PHASH_SIDE = 16

NAME_BYTES = 255
"""The longest name of a file that all common file systems take, in UTF-8."""

# Part of ImageError's message -> the phrase to count by
_REASONS = {
    "is empty": "empty",
    "not an image": "not an image",
    "megapixels": "too large",
    "fewer than": "too small",
    "damaged": "damaged or truncated",
}


@dataclass(frozen=True)
class Built:
    """What `build` found: a row an image, a row a reject, and counts for the metrics."""

    manifest: pd.DataFrame
    rejects: pd.DataFrame
    summary: dict[str, Any]


@dataclass(frozen=True)
class _Image:
    """A manifest row and where it came from; no pixels."""

    source: str
    row: dict[str, Any]


def build(collection: Collection, raw: Path, settings: Download, workers: int = 0) -> Built:
    """Bring every usable image, bytes unchanged, to raw/real or raw/fake, and describe it.

    An image keeps its path without the folder that told its class (train/real/7.jpg becomes real/train/7.jpg); where two meet, the
    later in the order of sources gets a number. Files are hard links where the file system allows, else copies. Byte-identical
    images of one class all stay; of both classes, none does. The result does not depend on the number of workers, and
    memory holds a few encoded images and one decoded image a worker.

    Args:
        collection: from `sources.collect`.
        raw: the folder to make; whatever it held before is removed.
        settings: the section `download`, for its limits of size.
        workers: threads that decode (0: none but the caller's).

    Returns:
        The manifest sorted by path, the rejects sorted by source, and
        {"images": {"real", "fake"}, "rejects": {"total", reason: count, ...}, "bytes": n}.
    """
    candidates, rejects = _candidates(collection, raw)
    if raw.exists():
        shutil.rmtree(raw)
    for place in {raw / label for label in labels.NAMES} | {(raw / path).parent for path in candidates}:
        place.mkdir(parents=True, exist_ok=True)

    kept: list[_Image] = []
    work = ((found, path, raw, settings) for path, found in candidates.items())
    for outcome in tqdm(_in_order(work, workers), total=len(candidates), desc="images", unit="image", disable=None):
        if isinstance(outcome, Reject):
            rejects.append(outcome)
        else:
            kept.append(outcome)

    contradictions = _contradictions(kept)
    for image in kept:
        if image.source in contradictions:
            (raw / image.row["path"]).unlink()
            rejects.append(contradictions[image.source])
    _remove_empty_folders(raw)

    rows = sorted((image.row for image in kept if image.source not in contradictions), key=lambda row: row["path"])
    rejects.sort(key=lambda reject: (reject.source, reject.reason, reject.detail))
    manifest = pd.DataFrame(rows, columns=list(TYPES)).astype(TYPES)
    table = pd.DataFrame([vars(reject) for reject in rejects], columns=list(REJECT_TYPES)).astype(REJECT_TYPES)
    return Built(manifest, table, _summary(manifest, table))


def require_both_classes(built: Built, rejects: Path) -> None:
    """UserError if a class has no usable image; it points to `rejects`, where the table has been written."""
    counts = built.summary["images"]
    if all(counts.values()):
        return
    raise UserError(
        f"download found {counts['real']} usable real and {counts['fake']} usable fake images, and both classes are needed: "
        f"put images below folders named real and fake, and see {rejects} for the {len(built.rejects)} files refused."
    )


def read(path: Path) -> pd.DataFrame:
    """Read a manifest; columns as in TYPES, text as it was written ("001" and "" included). UserError if it is missing or is none."""
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

    ImageHash's: which of the 16 x 16 lowest frequencies of a DCT are above their median; 64 hex digits.
    """
    side = 4 * PHASH_SIDE  # to which ImageHash would shrink the image for each of the two
    small = Image.fromarray(image).convert("L").resize((side, side), Image.Resampling.LANCZOS)
    one, mirrored = (imagehash.phash(picture, hash_size=PHASH_SIDE) for picture in (small, ImageOps.mirror(small)))
    return str(one), str(mirrored)


def _candidates(collection: Collection, raw: Path) -> tuple[dict[PurePosixPath, Found], list[Reject]]:
    """Files to try, keyed by their place below the raw folder, in the order of their sources; and what is refused unread."""
    rejects = list(collection.rejects)
    labelled: list[tuple[str, Found]] = []
    for tree in collection.trees:
        if tree.root.resolve().is_relative_to(raw.resolve()) or raw.resolve().is_relative_to(tree.root.resolve()):
            raise ValueError(f"{raw} and {tree.root} overlap")
        for found in walk(tree):
            if isinstance(found, Reject):
                rejects.append(found)
            elif (label := label_of(found.path)) is None:
                rejects.append(
                    Reject(found.source, "neither real nor fake", "no folder above it is named real or fake")
                )
            else:
                labelled.append((label, found))
    labelled.sort(key=lambda pair: pair[1].source)
    return _places(labelled), rejects


def _places(labelled: list[tuple[str, Found]]) -> dict[PurePosixPath, Found]:
    wanted = [_without_class(label, found.path) for label, found in labelled]
    # Compared without case, for file systems that do so; a file must not bear the name of a folder either
    taken = {str(parent).lower() for path in wanted for parent in path.parents}
    places = {}
    for path, (_, found) in zip(wanted, labelled, strict=True):
        place, number = path, 1
        while str(place).lower() in taken:
            number += 1
            place = _numbered(path, number)
        taken.add(str(place).lower())
        places[place] = found
    return places


def _numbered(path: PurePosixPath, number: int) -> PurePosixPath:
    """7.png -> 7-2.png, of a long name as much as fits."""
    end = f"-{number}{path.suffix}"
    stem = path.stem
    if len(end.encode()) >= NAME_BYTES:  # all the name is suffix
        end, stem = f"-{number}", path.name
    return path.with_name(shortened(stem, NAME_BYTES - len(end.encode())) + end)


def _without_class(label: str, path: PurePosixPath) -> PurePosixPath:
    parts = list(path.parts)
    position = max(i for i, part in enumerate(parts[:-1]) if part.lower() == label)
    del parts[position]
    # Names go into tables and addresses: no control characters, no bytes that are not UTF-8
    return PurePosixPath(label, *(re.sub(r"[\x00-\x1f\x7f\\\ud800-\udfff]", "_", part) for part in parts))


def _in_order(work: Iterable[tuple[Found, PurePosixPath, Path, Download]], workers: int) -> Iterator[_Image | Reject]:
    """Results of `_take` in the order of the work, with a bounded number under way."""
    if workers == 0:
        yield from (_take(*item) for item in work)
        return
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[_Image | Reject]] = deque()
        for item in work:
            pending.append(pool.submit(_take, *item))
            if len(pending) >= 8 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _take(found: Found, path: PurePosixPath, raw: Path, settings: Download) -> _Image | Reject:
    """Read, decode and describe one file, and put it into place."""
    limit = int(settings.max_megapixels * 8e6) + (64 << 20)  # no picture within the limit of pixels is larger than this
    try:
        size = found.file.stat().st_size
        if size > limit:
            return Reject(found.source, "too large", f"{size:,} bytes")
        data = found.file.read_bytes()
    except OSError as error:
        return Reject(found.source, "unreadable", f"the file cannot be read: {error.strerror}")
    try:
        pixels = images.decode(data, settings.max_megapixels, settings.min_side)
        header = images.header(data, settings.max_megapixels, settings.min_side)
        quantisation = images.jpeg_quantisation(data)
    except images.ImageError as error:
        reason = next((reason for part, reason in _REASONS.items() if part in str(error)), "not usable")
        return Reject(found.source, reason, str(error))
    _place(found.file, data, raw / path)
    phash, phash_mirrored = perceptual_hashes(pixels)
    row = {
        "path": path.as_posix(),
        "label": path.parts[0],
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
    return _Image(found.source, row)


def _place(file: Path, data: bytes, place: Path) -> None:
    try:
        os.link(file, place)
        return
    except OSError:
        pass  # another file system, one without links, or a file of another owner
    try:
        place.write_bytes(data)
    except OSError as error:
        raise UserError(f"{place} cannot be written ({error.strerror}): make room or mend the permissions.") from error


def _contradictions(kept: list[_Image]) -> dict[str, Reject]:
    """A reject for each image whose very bytes are also in the other class."""
    first: dict[tuple[str, str], str] = {}
    for image in kept:
        first.setdefault((image.row["sha256"], image.row["label"]), image.source)
    found = {}
    for image in kept:
        other = "fake" if image.row["label"] == "real" else "real"
        counterpart = first.get((image.row["sha256"], other))
        if counterpart is not None:
            detail = f"the same bytes are {counterpart}, which is {other}"
            found[image.source] = Reject(image.source, "in both classes", detail)
    return found


def _remove_empty_folders(raw: Path) -> None:
    for place, _, _ in os.walk(raw, topdown=False):
        if Path(place).parent != raw.parent and not any(Path(place).iterdir()):
            Path(place).rmdir()


def _summary(manifest: pd.DataFrame, rejects: pd.DataFrame) -> dict[str, Any]:
    images_by_class = Counter(manifest["label"])
    return {
        "images": {label: images_by_class[label] for label in labels.NAMES},
        "rejects": {"total": len(rejects)} | dict(sorted(Counter(rejects["reason"]).items())),
        "bytes": int(manifest["bytes"].sum()),
    }
