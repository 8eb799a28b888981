"""Resizing of images from 1024 x 1024 to 256 x 256 pixels by stage `resize`, against Pillow on all cores with the same filter.

Pillow runs in a pool of as many workers as this code uses, once with threads and once with processes; the faster pool is the
rival. The pools start before the timing, and each worker writes its rows to the target file. A loop without a pool has a row of its
own. `Image.draft` is not used: the JPEG decoder then shrinks the image with another filter, which changes pixels by up to 3 of 255
and, as it works for JPEG only, would resample two formats differently. `reducing_gap` changes pixels too.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks import pictures
from benchmarks.harness import Goal, Table, alternate, shipped_but
from dfganext import images, settings
from dfganext.data import arrays
from dfganext.runtime import cores

COUNTS = {"JPEG": 80, "PNG": 24}
SOURCE, SIZE = 1024, 256
INTERPOLATIONS = ("lanczos", "bicubic", "bilinear")
ROUNDS = 3


def main() -> None:
    table = Table("resize")
    for format, count in COUNTS.items():
        compare(table, format, count, SOURCE, ROUNDS)
    table.write("pillow")


def compare(table: Table, format: str, count: int, source: int, rounds: int) -> None:
    """Time all filters on `count` files of one format, of `source` x `source` pixels."""
    # forked before any other thread starts
    with (
        ProcessPoolExecutor(cores(), multiprocessing.get_context("fork")) as processes,
        tempfile.TemporaryDirectory() as temporary,
    ):
        list(processes.map(abs, range(cores())))
        raw = Path(temporary)
        files = pictures.folder_of(raw, count, source, format, distinct=16)
        with ThreadPoolExecutor(cores()) as threads:
            chunk = max(1, count // (4 * cores()))
            maps = {
                "loop": lambda function, rows: list(map(function, rows)),
                "threads": lambda function, rows: list(threads.map(function, rows)),
                "processes": lambda function, rows: list(processes.map(function, rows, chunksize=chunk)),
            }
            for interpolation in INTERPOLATIONS:
                measure(table, f"{format} {source} to {SIZE}, {interpolation}", interpolation, raw, files, maps, rounds)


def measure(
    table: Table,
    case: str,
    interpolation: str,
    raw: Path,
    files: Sequence[Path],
    maps: Mapping[str, Callable[[Callable[[int], None], Iterable[int]], object]],
    rounds: int,
) -> None:
    """Milliseconds per image of this code, of Pillow with each of `maps`, and of decoding alone on all cores."""
    relative = [path.relative_to(raw).as_posix() for path in files]
    labels = [path.split("/")[0] for path in relative]
    split = pd.DataFrame({"path": relative, "label": labels, "split": "train", "group": range(len(relative))})
    resize = settings.from_mapping(shipped_but({"resize.interpolation": interpolation})).resize

    def pillow(name: str) -> None:
        np.lib.format.open_memmap(target(raw, name), mode="w+", dtype=np.uint8, shape=(len(files), SIZE, SIZE, 3))
        maps[name](partial(store, files, target(raw, name), interpolation.upper()), range(len(files)))

    def decode_only() -> None:
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(lambda path: images.decode(path.read_bytes()).shape, files))

    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: arrays.write(split, raw, raw / "ours", SIZE, resize, cores()),
        **{name: partial(pillow, name) for name in maps},
        "decode": decode_only,
    }
    each = {
        name: [1e3 * one / len(files) for one in seconds] for name, seconds in alternate(contenders, rounds).items()
    }
    for name in maps:
        assert_same_pixels(np.load(raw / "ours" / "train.npy"), np.load(target(raw, name)))

    pool = min(("threads", "processes"), key=lambda name: median(each[name]))
    limit = median(each["decode"])
    against = f"Pillow in a pool of {cores()} {pool}"
    unit = "ms per image"
    table.add(case, "time", unit, each["ours"], each[pool], limit, Goal("ratio", least=1), against=against)
    goal = Goal("ratio", least=3)
    table.add(f"{case}, one loop", "time", unit, each["ours"], each["loop"], goal=goal, against="one loop over Pillow")
    goal = Goal("share_of_limit", least=0.85)
    table.add(case, "against decoding alone on all cores", unit, each["ours"], limit=limit, goal=goal)


def store(files: Sequence[Path], target: Path, filter: str, row: int) -> None:
    """Decode one file with Pillow, resize it and write it to its row of the target file."""
    with Image.open(files[row]) as image:
        small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling[filter])
    np.load(target, mmap_mode="r+")[row] = np.asarray(small)


def target(raw: Path, name: str) -> Path:
    return raw / f"{name}.npy"


def assert_same_pixels(ours: np.ndarray, rival: np.ndarray) -> None:
    """Equal to within 1 of 255."""
    difference = np.abs(ours.astype(int) - rival).max()
    assert difference <= 1, f"pixels differ by {difference} of 255"


if __name__ == "__main__":
    main()
