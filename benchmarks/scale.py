"""Time and peak memory of subsample, resize and score with 1,000, 10,000 and 100,000 images, and of near duplicates among 140,000."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from benchmarks import pictures
from benchmarks.harness import ROOT, Child, Goal, Table, peak_mib
from dfganext import settings
from dfganext.data import arrays, split
from dfganext.models import classifier
from dfganext.runtime import cores

COUNTS = (1_000, 10_000, 100_000)
SIZE = 32

MANY = 140_000
"""Images whose near duplicates are sought: as many as the paper's set has."""


def main() -> None:
    table = Table("scale")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = detector(folder / "detector")
        pictures.folder_of(folder / "all", COUNTS[-1], SIZE, "PNG")
        for count in COUNTS:
            images = first(folder, count)
            cases: dict[str, list[object]] = {"subsample": [count], "resize": [str(images), count]}
            for name, arguments in cases.items():
                with Child("benchmarks.scale") as child:
                    seconds, mib = child.call(name, *arguments)
                    add(table, name, count, seconds, mib)
            add(table, "score, with Ray's start", count, *score(images, folder / f"rows{count}", model))
        with Child("benchmarks.scale") as child:
            seconds, mib = child.call("near_duplicates", MANY)
            table.add(f"near duplicates, {MANY} images", "time", "s", [seconds], goal=Goal("ours", most=20))
            table.add(f"near duplicates, {MANY} images", "peak memory", "MiB", [mib])
    table.write("ray", "pyarrow")


def add(table: Table, name: str, count: int, seconds: float, mib: float) -> None:
    table.add(f"{name}, {count} images", "time", "s", [seconds])
    table.add(f"{name}, {count} images", "time per image", "ms", [1e3 * seconds / count])
    table.add(f"{name}, {count} images", "peak memory", "MiB", [mib])


def subsample(count: int) -> tuple[float, float]:
    """Draw and split images with random hashes."""
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    manifest = pd.DataFrame(
        {
            "path": [f"{number:06}.png" for number in range(count)],
            "label": [("real", "fake")[number % 2] for number in range(count)],
            "sha256": digests,
            "phash": digests,
            "phash_mirrored": digests,
        }
    )
    shipped = settings.load_settings(ROOT / "params.yaml")
    start = time.perf_counter()
    split.draw(manifest, shipped.subsample, shipped.subsample.seed)
    return time.perf_counter() - start, peak_mib()


def near_duplicates(count: int) -> tuple[float, float]:
    """Group random hashes, each different from its mirrored one."""
    hashes, mirrored = np.random.default_rng(0).integers(0, 256, (2, count, 32), dtype=np.uint8)
    start = time.perf_counter()
    split.near_duplicate_groups(hashes, mirrored, split.NEAR_DUPLICATE_BITS)
    return time.perf_counter() - start, peak_mib()


def resize(folder: str, count: int) -> tuple[float, float]:
    """Resize images and store them."""
    paths = [f"{('real', 'fake')[number % 2]}/{number:06}.png" for number in range(count)]
    labels = [path.split("/")[0] for path in paths]
    table = pd.DataFrame({"path": paths, "label": labels, "split": "train", "group": range(count)})
    start = time.perf_counter()
    arrays.write(
        table,
        Path(folder),
        Path(folder) / "arrays",
        48,
        settings.load_settings(ROOT / "params.yaml").resize,
        cores(),
    )
    return time.perf_counter() - start, peak_mib()


def score_command(images: Path, out: Path, model: Path) -> list[str]:
    """`dfganext score` of this checkout; PYTHONPATH must name its src."""
    code = "import sys; from dfganext.cli import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", code, "score", str(images), str(out), "--model", str(model)]


def score(images: Path, out: Path, model: Path) -> tuple[float, float]:
    """Seconds of the command, and the peak of its processes' unshared memory, in MiB."""
    command = score_command(images, out, model)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    peak = [0.0]

    def watch() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], unshared_mib(process.pid))
            time.sleep(2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output = process.communicate()[0]
    watcher.join()
    if process.returncode:
        raise RuntimeError(output)
    return time.perf_counter() - start, peak[0]


def unshared_mib(pid: int) -> float:
    """Unshared memory of a process and all its descendants, in MiB."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for process in family:
        try:
            total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total / 2**20


def first(folder: Path, count: int) -> Path:
    """A folder with hard links to the first `count` images."""
    target = folder / str(count)
    for name in ("real", "fake"):
        (target / name).mkdir(parents=True)
    for number in range(count):
        path = Path(("real", "fake")[number % 2]) / f"{number:06}.png"
        (target / path).hardlink_to(folder / "all" / path)
    return target


def detector(folder: Path, architecture: str = "test_convnext", size: int = SIZE) -> Path:
    """Write an untrained detector, by default a tiny one, to `folder`; returns it."""
    model, config = classifier.build(architecture, "ce", size, seed=0)
    classifier.save(folder, model.state_dict(), config)
    (folder / "operating_point.json").write_text(json.dumps({"threshold": 0.5, "temperature": 1.0}))
    return folder


if __name__ == "__main__":
    main()
