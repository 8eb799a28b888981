"""Predictions for folders of labelled images: files below folders named real and fake."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from dfganext import images
from dfganext.data import discovery, manifest
from dfganext.data.discovery import Reject, SourceFile
from dfganext.errors import UserError
from dfganext.evaluation import selective
from dfganext.inference.detector import Detector
from dfganext.runtime import batches_by_bytes, map_ordered

COLUMNS = ("p_fake", "novelty", "decision", "novel")
"""Of the predictions; novel: the image is unsure because it is unlike the training images."""


class Labelled(NamedTuple):
    """images: one row per image, sorted by path: the columns of a manifest, and `COLUMNS`. rejects: one row per file refused."""

    images: pd.DataFrame
    rejects: pd.DataFrame


class _Image(NamedTuple):
    row: dict[str, Any]
    pixels: np.ndarray  # at the detector's input size


def predict(detector: Detector, folders: list[Path], workers: int = 0) -> Labelled:
    """Predict every labelled image below some folders. Memory holds one batch of prepared images.

    The label of an image is the name, real or fake, of the nearest such folder above it; a folder given may have that name itself.

    Args:
        workers: threads that decode (0: the caller's thread).

    Raises:
        UserError: a folder does not exist, or there is no image of either class.
    """
    files, rejects = _files(folders)
    rows: list[dict[str, Any]] = []
    found = map_ordered(lambda file: _read(file, detector), files, workers)
    counted = tqdm(found, "images", len(files), unit="image", disable=None)
    usable = _collect(counted, rejects)
    for batch in batches_by_bytes(
        usable, lambda image: image.pixels.nbytes, discovery.BATCH_FILES, discovery.BATCH_BYTES
    ):
        scores = detector.scores(np.stack([image.pixels for image in batch]))
        decisions = selective.decide(detector.decision, *scores.T)
        for image, *values in zip(batch, *scores.T.tolist(), *decisions, strict=True):
            rows.append(image.row | dict(zip(COLUMNS, values, strict=True)))
    if not rows:
        names = ", ".join(map(str, folders))
        raise UserError(
            f"There is no usable image below folders named real or fake in {names}; {len(rejects)} files were refused."
        )
    table = pd.DataFrame(rows, columns=[*manifest.TYPES, *COLUMNS]).sort_values("path", ignore_index=True)
    return Labelled(table, pd.DataFrame(sorted(set(rejects)), columns=list(Reject._fields)).astype(str))


def _files(folders: list[Path]) -> tuple[list[SourceFile], list[Reject]]:
    files: dict[Path, SourceFile] = {}  # one folder may be inside another
    rejects: list[Reject] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: give a folder with images below real/ or fake/.")
        found, refused = discovery.files_of_source(folder, str(folder), above=PurePosixPath(folder.resolve().name))
        for file in found:
            place = file.file.parent.resolve() / file.file.name
            if place not in files or discovery.label_of(files[place].path) is None:
                files[place] = file
        rejects += refused
    return list(files.values()), rejects


def _read(file: SourceFile, detector: Detector) -> _Image | Reject:
    label = discovery.label_of(file.path)
    if not discovery.is_like_image(file.file):
        return Reject(file.source, discovery.NOT_DATA, "neither its name nor its content is an image's")
    if label is None:
        return Reject(file.source, "neither real nor fake", "no folder above it is named real or fake")
    image = manifest.read_image(file, images.MAX_MEGAPIXELS, images.MIN_SIDE)
    if isinstance(image, Reject):
        return image
    return _Image({"path": file.source, "label": label, **image.row}, detector.config.prepare(image.pixels))


def _collect(outcomes: Iterable[_Image | Reject], rejects: list[Reject]) -> Iterator[_Image]:
    for outcome in outcomes:
        if isinstance(outcome, Reject):
            rejects.append(outcome)
        else:
            yield outcome
