"""`dfganext score` on JPEG files of 256 pixels with two workers, against two bare processes.

A bare process loads the same model and predicts its half of the images in batches, with one thread: no plan, no parts, no rows, no
recovery. Both are whole commands, with their start. The table has the start alone too: the command on as many images as workers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import pictures, scale
from benchmarks.harness import ROOT, Goal, Table, alternate

ARCHITECTURE, SIZE, COUNT, ROUNDS, STARTS = "tf_efficientnet_lite0", 256, 10_000, 1, 3
WORKERS = 2

BARE = """
import sys
from pathlib import Path

from dfganext import runtime

runtime.prepare()
import torch

from dfganext.data.discovery import BATCH_FILES
from dfganext.inference.detector import Detector

torch.set_num_threads(1)
model, images, number, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
files = sorted(file for file in images.rglob("*") if file.is_file())[number::workers]
detector = Detector.load(model)
for start in range(0, len(files), BATCH_FILES):
    detector.predict([file.read_bytes() for file in files[start : start + BATCH_FILES]])
"""


def main() -> None:
    table = Table("score")
    compare(table, ARCHITECTURE, SIZE, COUNT, ROUNDS, STARTS)
    table.write("timm", "ray", "pyarrow")


def compare(table: Table, architecture: str, size: int, count: int, rounds: int, starts: int) -> None:
    """Images per second of whole commands, and the seconds of their start, measured `starts` times."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = scale.detector(folder / "model", architecture, size)
        pictures.folder_of(folder / "few", WORKERS, size, "JPEG")
        pictures.folder_of(folder / "all", count, size, "JPEG")
        runs = iter(range(10**6))

        def ours(images: str) -> None:
            command = scale.score_command(folder / images, folder / f"rows{next(runs)}", model)
            run([[*command, "--workers", str(WORKERS)]])

        def bare(images: str) -> None:
            words = [sys.executable, "-c", BARE, str(model), str(folder / images)]
            run([[*words, str(number), str(WORKERS)] for number in range(WORKERS)])

        start = alternate({"ours": lambda: ours("few"), "bare": lambda: bare("few")}, starts) if starts else {}
        whole = alternate({"ours": lambda: ours("all"), "bare": lambda: bare("all")}, rounds, warm_up=False)
    case, against = f"{architecture}, {size} px, {count} images", f"{WORKERS} bare processes"
    rates = {name: [count / one for one in seconds] for name, seconds in whole.items()}
    limit = median(rates["bare"])
    goal = Goal("share_of_limit", least=0.85)
    table.add(case, "rate", "images per second", rates["ours"], rates["bare"], limit, goal, "higher", against)
    if start:
        case, goal = f"{architecture}, {WORKERS} images", Goal("ours", most=10)
        table.add(case, "start", "s", start["ours"], start["bare"], goal=goal, against=against)


def run(commands: list[list[str]]) -> None:
    """Run commands at the same time. RuntimeError if one fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"env": environment, "stdout": subprocess.DEVNULL, "start_new_session": True}
    started = [subprocess.Popen(words, **options) for words in commands]
    if any(process.wait() for process in started):
        raise RuntimeError("a command has failed")


if __name__ == "__main__":
    main()
