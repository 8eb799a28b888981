"""Images of 1024 pixels a side to 256, as stage `resize` stores them, against a loop over Pillow with the same filter."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks import pictures
from benchmarks.harness import Goal, Table, alternate
from dfganext import images
from dfganext.data import arrays
from dfganext.process import cores
from dfganext.settings import Resize

COUNTS = {"JPEG": 120, "PNG": 40}
ROUNDS = 3


def main() -> None:
    table = Table("resize")
    for format, count in COUNTS.items():
        with tempfile.TemporaryDirectory() as temporary:
            raw = Path(temporary)
            files = pictures.folder_of(raw, count, 1024, format)
            for interpolation in ("lanczos", "bicubic", "bilinear"):
                measure(table, format, interpolation, raw, files)
    table.write("pillow")


def measure(table: Table, format: str, interpolation: str, raw: Path, files: list[Path]) -> None:
    """Milliseconds an image of both, and what decoding alone takes on all cores."""
    relative = [path.relative_to(raw).as_posix() for path in files]
    split = pd.DataFrame({"path": relative, "label": [path.split("/")[0] for path in relative], "split": "train"})
    settings = Resize(interpolation=interpolation, equalise=False)  # type: ignore[arg-type]

    def plain() -> None:
        target = np.lib.format.open_memmap(
            raw / "plain.npy", mode="w+", dtype=np.uint8, shape=(len(files), 256, 256, 3)
        )
        for row, path in enumerate(files):
            with Image.open(path) as image:
                small = image.convert("RGB").resize((256, 256), Image.Resampling[interpolation.upper()])
            target[row] = np.asarray(small)

    def decode_only() -> None:
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(lambda path: images.decode(path.read_bytes()).shape, files))

    seconds = alternate(
        {
            "ours": lambda: arrays.write(split, raw, raw / "ours", 256, settings, cores()),
            "plain": plain,
            "decode": decode_only,
        },
        ROUNDS,
    )
    difference = np.abs(np.load(raw / "ours" / "train.npy").astype(int) - np.load(raw / "plain.npy")).max()
    assert difference <= 1, difference  # the same pictures
    ours, rival, limit = ([1e3 * one / len(files) for one in seconds[name]] for name in ("ours", "plain", "decode"))
    case = f"{format} 1024 to 256, {interpolation}"
    table.add(case, "time", "ms an image", ours, rival, float(np.median(limit)), Goal("ratio", least=3))
    table.add(
        case,
        "decode rate on all cores",
        "ms an image",
        ours,
        (),
        float(np.median(limit)),
        Goal("share_of_limit", least=0.85),
    )


if __name__ == "__main__":
    main()
