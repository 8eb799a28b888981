"""`dfganext predict` on a folder of JPEG files, against the same images decoded and predicted in turns.

The limit is the network alone, on images that are in memory: what remains when decoding costs nothing. Two cores that decode while
they compute cannot reach it, because decoding takes its part of both.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks import pictures
from benchmarks.harness import Goal, Table, alternate
from dfganext import images
from dfganext.cli import predict_files
from dfganext.data.discovery import BATCH_FILES
from dfganext.inference.detector import Detector
from dfganext.models import classifier

CASES = (("tf_efficientnet_lite0", 256), ("convnext_tiny", 96))
COUNT, ROUNDS = 512, 3


def main() -> None:
    table = Table("predict")
    for architecture, size in CASES:
        compare(table, architecture, size, COUNT, ROUNDS)
    table.write("timm", "pillow")


def compare(table: Table, architecture: str, size: int, count: int, rounds: int) -> None:
    """Images per second, from files of 256 x 256 pixels."""
    model, config = classifier.build(architecture, "ce", size, seed=1)
    detector = Detector(model.to(memory_format=torch.channels_last), config, 0.5, 1.0)
    with tempfile.TemporaryDirectory() as temporary:
        files = pictures.folder_of(Path(temporary), count, 256, "JPEG")
        pixels = np.stack([config.prepare(images.decode(file.read_bytes())) for file in files])

        def ours() -> list[float]:
            return [row["p_fake"] for row in predict_files(detector, files, {})]

        def in_turns() -> list[float]:
            found: list[float] = []
            for start in range(0, count, BATCH_FILES):
                data = [file.read_bytes() for file in files[start : start + BATCH_FILES]]
                found += [float(one.p_fake or 0) for one in detector.predict(data)]
            return found

        def network() -> list[float]:
            parts = range(0, count, BATCH_FILES)
            return [float(one) for start in parts for one in detector.scores(pixels[start : start + BATCH_FILES])[:, 0]]

        np.testing.assert_allclose(ours(), network(), atol=1e-5)
        np.testing.assert_allclose(in_turns(), network(), atol=1e-5)
        seconds = alternate({"ours": ours, "turns": in_turns, "network": network}, rounds)
    rates = {name: [count / one for one in values] for name, values in seconds.items()}
    table.add(
        f"{architecture}, {size} px",
        "rate",
        "images per second",
        rates["ours"],
        rates["turns"],
        median(rates["network"]),
        Goal("share_of_limit", least=0.9),
        better="higher",
        against="decoding and computing in turns",
    )


if __name__ == "__main__":
    main()
