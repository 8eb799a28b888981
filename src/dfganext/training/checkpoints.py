"""Checkpoints of training runs. A stopped run finds its checkpoint again only if data, settings, code and libraries are the same."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from dfganext import paths, versions
from dfganext.data.arrays import Images

KEPT_DAYS = 7
"""A stopped run's files are removed after this many days without a new epoch."""


@contextmanager
def resumable(stage: str, inputs: Mapping[str, object], root: Path = Path()) -> Iterator[Path]:
    """The checkpoint file of a run of `stage`, identified by its inputs and by the code and libraries that dvc.yaml declares.

    The file need not exist yet. It is kept if the block raises and removed if the block succeeds. A second process with the
    same inputs waits for the first. Files of other runs are removed after KEPT_DAYS.

    Args:
        inputs: settings and hashes, as JSON values.
        root: the workspace, which holds dvc.yaml.
    """
    declared = versions.declared(stage, root, root / paths.VERSIONS)
    key = hashlib.sha256(json.dumps([inputs, declared], sort_keys=True).encode()).hexdigest()[:16]
    path = paths.work() / "checkpoints" / f"{stage}-{key}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    with FileLock(lock):
        _remove_abandoned(path.parent, path.stem)
        finished = False
        try:
            yield path
            finished = True
        finally:
            if finished or not path.exists():
                # the lock last: a process that waits for it checks that its file still exists
                for file in (path, partial(path), lock):
                    file.unlink(missing_ok=True)


def write(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Replace a checkpoint file by a state dictionary, or leave it as it was if writing fails."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial(checkpoint).open("wb") as file:
            torch.save(state, file)
        partial(checkpoint).replace(checkpoint)
    except BaseException:
        partial(checkpoint).unlink(missing_ok=True)  # a full disk needs the space
        raise


def partial(checkpoint: Path) -> Path:
    """The file that is written first and then replaces the checkpoint."""
    return checkpoint.with_suffix(".partial")


def hash_images(images: Images, label: int | None = None) -> str:
    """sha256 of the pixels and labels of all images, or of one class, in their order. Paths are not included."""
    digest = hashlib.sha256()
    for row in range(len(images.labels)) if label is None else images.only(label):
        digest.update(bytes([images.labels[row]]) + images.pixels[row].tobytes())
    return digest.hexdigest()


def _remove_abandoned(folder: Path, own: str) -> None:
    """Remove the files of each other run whose newest file is older than KEPT_DAYS."""
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for run in {file.stem for file in folder.iterdir()} - {own}:
        with suppress(FileNotFoundError):  # removed by another process meanwhile
            files = list(folder.glob(f"{run}.*"))
            if all(file.stat().st_mtime < oldest for file in files):
                for file in files:
                    file.unlink()
