"""Where a stopped training run left off, found again by everything that decides how it goes on, and by nothing else."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

import dfganext
from dfganext.data.arrays import Images

KEPT_DAYS = 7
"""After so long without a new epoch, what a stopped run left is taken for one that nobody goes on with."""


@contextmanager
def resumable(
    work: Path, name: str, inputs: Mapping[str, object], modules: Sequence[str], libraries: Sequence[str]
) -> Iterator[Path]:
    """The checkpoint file of a run with exactly these inputs, these modules and these libraries.

    It need not exist yet. It is kept if the block raises and removed if it ends well; a second process with the same inputs
    waits for the first. What other runs left more than KEPT_DAYS ago is removed, unless a process is using it.

    Args:
        work: folder of the checkpoints.
        name: what is trained; part of the file's name.
        inputs: settings and hashes, of types that JSON knows.
        modules: source files that decide how training goes, relative to the package.
        libraries: distributions whose versions do.
    """
    decisive = {
        "inputs": inputs,
        "modules": {module: _sha256(Path(dfganext.__file__).parent / module) for module in modules},
        "libraries": {library: version(library) for library in libraries},
    }
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
    path = work / "checkpoints" / f"{name}-{key}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    with FileLock(lock):
        _remove_abandoned(path.parent, lock)
        yield path
        # the lock last: a process that waits for it looks again whether the file it waits for is still there
        for file in (path, partial(path), lock):
            file.unlink(missing_ok=True)


def partial(checkpoint: Path) -> Path:
    """Where a checkpoint is written before it takes the place of the last one."""
    return checkpoint.with_suffix(".partial")


def digest_of(images: Images, label: int | None = None) -> str:
    """sha256 of the pixels and labels of all images, or of those of one class, in their order; paths do not count."""
    digest = hashlib.sha256()
    for row in range(len(images.labels)) if label is None else images.only(label):
        digest.update(bytes([images.labels[row]]) + images.pixels[row].tobytes())
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _remove_abandoned(folder: Path, own: Path) -> None:
    """Remove what nobody has written for KEPT_DAYS and no process has locked; `own` is the lock of this process."""
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for lock in {file.with_suffix(".lock") for file in folder.iterdir()} - {own}:
        try:
            left = [file for suffix in (".pt", ".partial", ".lock") if (file := lock.with_suffix(suffix)).exists()]
            if any(file.stat().st_mtime >= oldest for file in left):
                continue
            with FileLock(lock, timeout=0):
                for file in (*left, lock):
                    file.unlink(missing_ok=True)
        except (Timeout, FileNotFoundError):
            continue  # in use, for an epoch may take long; or removed by another process meanwhile
