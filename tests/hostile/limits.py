"""Runs a function over the corpus in a process of its own and measures it: `python -m tests.hostile.limits decode 200`."""

import json
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from dfganext import images
from dfganext.data import archives
from dfganext.errors import UserError
from tests.hostile import corpus

SECONDS = 10
"""Time after which reading one file counts as hanging."""


def decode(count: int) -> Counter[str]:
    """Decode `count` mutations of each format: how often each outcome occurred."""
    outcomes: Counter[str] = Counter()
    for _, data in within_time(corpus.every_mutation(count)):
        try:
            shape = images.decode(data).shape
            assert len(shape) == 3 and shape[2] == 3
            outcomes["decoded"] += 1
        except images.ImageError as error:
            assert str(error) and "\n" not in str(error)
            outcomes[error.reason] += 1
    return outcomes


def extract(count: int) -> Counter[str]:
    """Unpack `count` archives: nothing lands outside the target, and it holds only regular files."""
    outcomes: Counter[str] = Counter()
    for name, data in within_time(corpus.archives(count)):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            archive = folder / name
            archive.write_bytes(data)
            try:
                rejects = archives.extract(archive, folder / "a" / "b" / "target")
                assert all(reject.detail and "\n" not in reject.detail for reject in rejects)
                outcomes["unpacked"] += 1
            except UserError as error:
                assert str(error) and "\n" not in str(error)
                outcomes["refused"] += 1
            assert sorted(one.name for one in folder.iterdir()) == sorted(["a", name])
            assert [one.name for one in (folder / "a").iterdir()] == ["b"]
            assert [one.name for one in (folder / "a" / "b").iterdir()] == ["target"]
            for path in (folder / "a" / "b" / "target").rglob("*"):
                assert not path.is_symlink() and (path.is_dir() or path.is_file()), path
    assert not Path("/tmp/absolute.png").exists() and not Path("/tmp/through-a-link.png").exists()
    return outcomes


def within_time(files):
    """The files, with an alarm that ends the process with a traceback if the next one is not asked for in time."""
    for one in files:
        signal.alarm(SECONDS)
        yield one
    signal.alarm(0)


def hanging(*_) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def main() -> None:
    signal.signal(signal.SIGALRM, hanging)
    images.decode(corpus.originals("JPEG")[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    outcomes = {"decode": decode, "extract": extract}[sys.argv[1]](int(sys.argv[2]))
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"outcomes": outcomes, "seconds": time.monotonic() - start, "added_mib": added}))


if __name__ == "__main__":
    main()
