"""Training on a CUDA GPU at 256 pixels, against a PyTorch loop as an expert writes it (see `benchmarks.training`)."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks import training
from benchmarks.harness import Goal, Table
from benchmarks.train_cpu import AGAINST, ARCHITECTURE

SIZE, COUNT, BATCH = 256, 10_000, 128
ROUNDS = 3
EPOCHS = 10
"""Of the paper."""


def main() -> None:
    if not torch.cuda.is_available():
        print("train_gpu: PyTorch sees no CUDA device here: nothing measured\n")
        return
    table = Table("train_gpu")
    with tempfile.TemporaryDirectory() as folder:
        training.write_files(Path(folder), COUNT)
        epochs = training.in_turns(folder, SIZE, BATCH, "cuda", ROUNDS, ARCHITECTURE)
    case = f"{SIZE} px, {ARCHITECTURE}, batches of {BATCH}, {COUNT} images"
    resident = statistics.median(epochs.resident)
    table.add(case, "time of an epoch", "s", epochs.ours, epochs.rival, goal=Goal("ratio", least=1), against=AGAINST)
    table.add(
        case, "against a resident batch", "s", epochs.ours, limit=resident, goal=Goal("share_of_limit", least=0.95)
    )
    table.add(case, "the paper's ten epochs", "s", [EPOCHS * one for one in epochs.ours], goal=Goal("ours", most=60))
    table.write("timm")


if __name__ == "__main__":
    main()
