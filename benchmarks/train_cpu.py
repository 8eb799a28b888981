"""Training on a CPU at 64 and 256 pixels, against the same loop in float32 that decodes its JPEG files in each epoch."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks import training
from benchmarks.harness import Child, Goal, Table

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
    with (
        Child("benchmarks.training") as ours,
        Child("benchmarks.training", plain=True) as theirs,
    ):
        ours.call("prepare_ours", folder, size, batch_size, "cpu")
        theirs.call("prepare_theirs", folder, size, batch_size, "cpu", False)
        epochs, rivals, steps = [], [], []
        for number in range(ROUNDS + 1):
            epochs.append(ours.call("epoch_ours", number))
            rivals.append(theirs.call("epoch_theirs", number))
            steps.append(ours.call("steps_ours", number))
    each = 1e3 / count
    case = f"{size} px, ConvNeXt-T, batches of {batch_size}"
    milliseconds, rival = (
        [one["seconds"] * each for one in rows[1:]] for rows in (epochs, rivals)
    )  # the first warms up
    limit = statistics.median(steps[1:]) * each
    table.add(case, "time", "ms an image", milliseconds, rival, limit, Goal("ratio", least=1.5))
    waits = [100 * one["waited"] / one["seconds"] for one in epochs[1:]]
    table.add(case, "wait for the loader", "% of the epoch", waits, goal=Goal("ours", most=3))


if __name__ == "__main__":
    main()
