"""Training on a CUDA GPU at 256 pixels, against timm's settings: mixed precision, channels_last, a loader of one file an image."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks import training
from benchmarks.harness import Child, Goal, Table

SIZE, COUNT, BATCH = 256, 10_000, 128
ROUNDS = 3
EPOCHS = 10
"""Of the paper."""


def main() -> None:
    if not torch.cuda.is_available():
        print("train_gpu: PyTorch sees no CUDA device here: nothing measured\n")
        return
    table = Table("train_gpu")
    with (
        tempfile.TemporaryDirectory() as folder,
        Child("benchmarks.training") as ours,
        Child("benchmarks.training", plain=True) as theirs,
    ):
        training.write_files(Path(folder), COUNT)
        ours.call("prepare_ours", folder, SIZE, BATCH, "cuda")
        theirs.call("prepare_theirs", folder, SIZE, BATCH, "cuda", True)
        epochs, rivals, steps = [], [], []
        for number in range(ROUNDS + 1):
            epochs.append(ours.call("epoch_ours", number))
            rivals.append(theirs.call("epoch_theirs", number))
            steps.append(ours.call("steps_ours", number))
    case = f"{SIZE} px, ConvNeXt-T, batches of {BATCH}, {COUNT} images"
    seconds, rival = ([one["seconds"] for one in rows[1:]] for rows in (epochs, rivals))  # the first warms up
    resident = statistics.median(steps[1:])
    table.add(case, "time of an epoch", "s", seconds, rival, goal=Goal("ratio", least=1.3))
    table.add(case, "against a resident batch", "s", seconds, limit=resident, goal=Goal("share_of_limit", least=0.95))
    table.add(case, "the paper's ten epochs", "s", [EPOCHS * one for one in seconds], goal=Goal("ours", most=60))
    table.write("timm")


if __name__ == "__main__":
    main()
