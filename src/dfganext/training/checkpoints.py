"""Where a stopped training run left off, found again by everything that decides how it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock

import dfganext


@contextmanager
def resumable(work: Path, name: str, **inputs: object) -> Iterator[Path]:
    """The checkpoint file of a run with exactly these inputs, this code and this PyTorch.

    It need not exist yet. It is kept if the block raises and removed if it ends well; a second process with the same inputs
    waits for the first.

    Args:
        work: folder of the checkpoints.
        name: what is trained; part of the file's name.
        inputs: settings and hashes, of types that JSON knows.
    """
    decisive = json.dumps({"inputs": inputs, "code": _code(), "torch": torch.__version__}, sort_keys=True)
    path = work / "checkpoints" / f"{name}-{hashlib.sha256(decisive.encode()).hexdigest()[:16]}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        yield path
        path.unlink(missing_ok=True)


def _code() -> str:
    digest = hashlib.sha256()
    folder = Path(dfganext.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
