"""Training on a CPU at 64 and 256 pixels, against the same loop in float32 that decodes its JPEG files in each epoch."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks import training
from benchmarks.harness import Goal, Table

CASES = {64: (384, 32), 256: (48, 16)}
"""Pixels a side: images of an epoch, and of a batch."""

ROUNDS = 2


def main() -> None:
    table = Table("train_cpu")
    for size, (count, batch_size) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            training.write_files(Path(folder), count, distinct=64)
            measure(table, folder, size, count, batch_size)
    table.write("timm")


def measure(table: Table, folder: str, size: int, count: int, batch_size: int) -> None:
    epochs = training.in_turns(folder, size, batch_size, "cpu", ROUNDS, fast=False)
    each = 1e3 / count
    case = f"{size} px, ConvNeXt-T, batches of {batch_size}"
    ours, theirs = ([one * each for one in seconds] for seconds in (epochs.ours, epochs.theirs))
    limit = statistics.median(epochs.resident) * each
    table.add(case, "time", "ms an image", ours, theirs, limit, Goal("ratio", least=1.5))
    waits = [100 * waited / seconds for waited, seconds in zip(epochs.waited, epochs.ours, strict=True)]
    table.add(case, "wait for the loader", "% of the epoch", waits, goal=Goal("ours", most=3))


if __name__ == "__main__":
    main()
