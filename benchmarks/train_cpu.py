"""Training on a CPU at 64 and 256 pixels, against a PyTorch loop as an expert writes it (see `benchmarks.training`); and what the
settings of memory in `dfganext.runtime` do for a network with large feature maps."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks import training
from benchmarks.harness import Child, Goal, Table
from dfganext import runtime

CASES = {64: (384, 32), 256: (64, 16)}
"""Pixels a side: images of an epoch, and of a batch."""

ARCHITECTURE = "convnext_tiny"
LARGE_MAPS = ("tf_efficientnet_lite0", 256, 320, 32)
"""Architecture, pixels a side, images of an epoch, and of a batch: many tensors are larger than glibc keeps by itself."""

ROUNDS = 3
AGAINST = "PyTorch with bfloat16, channels_last, fused AdamW, decoded images in memory"


def main() -> None:
    table = Table("train_cpu")
    for size, (count, batch_size) in CASES.items():
        compare(table, size, count, batch_size, ARCHITECTURE, ROUNDS)
    compare_memory(table, *LARGE_MAPS, ROUNDS)
    table.write("timm")


def compare_memory(table: Table, architecture: str, size: int, count: int, batch_size: int, rounds: int) -> None:
    """Time epochs of the same loop in float32 with the memory settings of `dfganext.runtime`, and with glibc's and PyTorch's own."""
    changes = {"convnext.architecture": architecture, "convnext.size": size, "convnext.batch_size": batch_size}
    changes |= {"convnext.precision": "float32", "machine.device": "cpu", "machine.workers": runtime.cores()}
    epochs: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as folder, Child("benchmarks.training") as ours:
        training.write_files(Path(folder), count, distinct=64)
        with Child("benchmarks.training", plain=True) as plain:
            children = {"ours": ours, "plain": plain}
            for child in children.values():
                child.call("prepare_ours", folder, changes, None)
            for number in range(rounds + 1):
                for name, child in children.items():
                    epochs[name].append(child.call("epoch_ours", number))
            peaks = {name: child.call("peak") for name, child in children.items()}
    case = f"{size} px, {architecture}, batches of {batch_size}, float32"
    against = "the same loop, memory as glibc manages it"
    mine, other = ([1e3 * one["seconds"] / count for one in epochs[name][1:]] for name in ("ours", "plain"))
    table.add(case, "time", "ms per image", mine, other, goal=Goal("ratio", least=1.3), against=against)
    mine, other = ([100 * one["system"] / one["cpu"] for one in epochs[name][1:]] for name in ("ours", "plain"))
    table.add(case, "processor time in the kernel", "%", mine, other, goal=Goal("ours", most=5), against=against)
    table.add(case, "memory", "MiB", [peaks["ours"]], [peaks["plain"]], against=against)


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
