"""The forward pass of one image, and of a batch, with each engine, against PyTorch in the same precision."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness import Table, bursts
from dfganext.inference import engines, onnx_model
from dfganext.inference.detector import Detector
from dfganext.models import classifier
from dfganext.models.folder import ONNX_FILE

ARCHITECTURES = ("convnext_tiny", "tf_efficientnet_lite0")
SIZE, BATCH, ROUNDS, CALLS = 256, 16, 6, 8
ENGINES = {"float32": ("onnxruntime", "openvino"), "bfloat16": ("openvino",)}
AGAINST = "PyTorch, channels_last, the same precision"


def main() -> None:
    table = Table("engines")
    for architecture in ARCHITECTURES:
        compare(table, architecture, SIZE, ROUNDS, CALLS)
    table.write("timm", "onnxruntime", "openvino")


def compare(table: Table, architecture: str, size: int, rounds: int, calls: int) -> None:
    """Milliseconds per image of every call; p_fake must be PyTorch's."""
    model, config = classifier.build(architecture, "ce", size, seed=1)
    exact = Detector(model, config, 0.5, 1.0)
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / ONNX_FILE
        onnx_model.write(exact, file, "choose another")
        for precision, names in ENGINES.items():
            fast = precision == "bfloat16"
            loaded = {name: engines.load(name, file, fast) for name in names}
            contenders = {"torch": Detector(model, config, 0.5, 1.0, precision).scores}
            contenders |= {name: engine.scores for name, engine in loaded.items()}
            for name in names:
                shift = np.abs(contenders[name](pixels) - exact.scores(pixels)).max()
                assert shift <= (1e-2 if fast else engines.MAX_DIFFERENCE), f"{name}: p_fake differs by {shift}"
            for count in (1, BATCH):
                calls_of = {name: partial(scores, pixels[:count]) for name, scores in contenders.items()}
                seconds = bursts(calls_of, rounds, -(-calls // count))
                times = {name: [1e3 * one / count for one in found] for name, found in seconds.items()}
                for name in names:
                    case = f"{architecture}, {size} px, {name}, {precision}, batches of {count}"
                    table.add(case, "time", "ms per image", times[name], times["torch"], against=AGAINST)


if __name__ == "__main__":
    main()
