"""Training on a CPU at 64 and 256 pixels, against a PyTorch loop as an expert writes it (see `benchmarks.training`)."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks import training
from benchmarks.harness import Goal, Table

CASES = {64: (384, 32), 256: (64, 16)}
"""Pixels a side: images of an epoch, and of a batch."""

ARCHITECTURE = "convnext_tiny"
ROUNDS = 3
AGAINST = "PyTorch with bfloat16, channels_last, fused AdamW, decoded images in memory"


def main() -> None:
    table = Table("train_cpu")
    for size, (count, batch_size) in CASES.items():
        compare(table, size, count, batch_size, ARCHITECTURE, ROUNDS)
    table.write("timm")


def compare(table: Table, size: int, count: int, batch_size: int, architecture: str, rounds: int) -> None:
    """Time epochs of `count` images, `size` pixels a side."""
    with tempfile.TemporaryDirectory() as folder:
        training.write_files(Path(folder), count, distinct=64)
        epochs = training.in_turns(folder, size, batch_size, "cpu", rounds, architecture)
    each = 1e3 / count
    case = f"{size} px, {architecture}, batches of {batch_size}"
    ours, rival = ([one * each for one in seconds] for seconds in (epochs.ours, epochs.rival))
    limit = statistics.median(epochs.resident) * each
    table.add(case, "time", "ms per image", ours, rival, limit, Goal("ratio", least=1), against=AGAINST)
    waits = [100 * waited / seconds for waited, seconds in zip(epochs.waited, epochs.ours, strict=True)]
    table.add(case, "wait for the loader", "% of the epoch", waits, goal=Goal("ours", most=3))


if __name__ == "__main__":
    main()
