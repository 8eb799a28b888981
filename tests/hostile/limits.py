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

MAX_MIB = 1024
"""Memory above that of the idle process."""


def decode(data: bytes) -> str:
    """Decode a file, and say how that ended: an array, or a reason in one line."""
    try:
        shape = images.decode(data).shape
    except images.ImageError as error:
        assert str(error) and "\n" not in str(error)
        return error.reason
    assert len(shape) == 3 and shape[2] == 3
    return "decoded"


def extract(data: bytes) -> str:
    """Unpack an archive, and say how that ended: nothing lies outside the target, which holds only regular files."""
    with tempfile.TemporaryDirectory() as temporary:
        archive = Path(temporary) / "archive"
        archive.write_bytes(data)
        target = Path(temporary) / "a" / "b" / "target"
        try:
            rejects = archives.extract(archive, target)
            assert all(reject.detail and "\n" not in reject.detail for reject in rejects)
            outcome = "unpacked"
        except UserError as error:
            assert str(error) and "\n" not in str(error)
            outcome = "refused"
        for folder, names in (
            (target.parents[2], ["a", "archive"]),
            (target.parents[1], ["b"]),
            (target.parent, ["target"]),
        ):
            assert sorted(one.name for one in folder.iterdir()) == names
        for path in target.rglob("*"):
            assert not path.is_symlink() and (path.is_dir() or path.is_file()), path
    assert not Path("/tmp/absolute.png").exists() and not Path("/tmp/through-a-link.png").exists()
    return outcome


WAYS_IN = {"decode": (decode, corpus.every_mutation), "extract": (extract, corpus.archives)}
"""Each with its corpus."""


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
    function, files = WAYS_IN[sys.argv[1]]
    outcomes = Counter(function(data) for _, data in within_time(files(int(sys.argv[2]))))
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"outcomes": outcomes, "seconds": time.monotonic() - start, "added_mib": added}))


if __name__ == "__main__":
    main()
