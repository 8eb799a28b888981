"""Other engines than PyTorch for a detector's forward pass on a CPU: ONNX Runtime and OpenVINO.

Both read the ONNX model that `onnx_model.write` makes. They fuse layers, such as a convolution with the batch normalisation that
follows it, which PyTorch computes one by one.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfganext.errors import UserError, reason

if TYPE_CHECKING:
    import openvino

MAX_DIFFERENCE = 1e-4
"""Of p_fake and novelty, between an engine and PyTorch in float32."""

BATCH = 64
"""Images per call, which bounds the memory."""

TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
"""The extra of df-ganext that installs an engine."""


@dataclass(frozen=True)
class Engine:
    """name: as in the setting promote.engine. compute: uint8 (N, size, size, 3) -> [p_fake, novelty], float32 (N,) each."""

    name: str
    compute: Callable[[np.ndarray], list[np.ndarray]]

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        """p_fake and novelty, as `Detector.scores`: uint8 (N, size, size, 3) -> float64 (N, 2)."""
        found = np.empty((len(pixels), 2))
        for start in range(0, len(pixels), BATCH):
            rows = slice(start, start + BATCH)
            found[rows] = np.stack(self.compute(np.ascontiguousarray(pixels[rows])), axis=1)
        return found


def require(name: str) -> None:
    """UserError if an engine is not installed."""
    if importlib.util.find_spec(name) is None:
        raise UserError(f"{TITLES[name]} is not installed: pip install 'df-ganext[{EXTRAS[name]}]'.")


def load(name: str, file: Path, bfloat16: bool = False) -> Engine:
    """An engine with an ONNX model, on the CPU, with as many threads as PyTorch has now.

    Args:
        bfloat16: compute in bfloat16, which OpenVINO can do.

    Raises:
        UserError: the engine is not installed, or cannot read the file.
    """
    require(name)
    make = {"onnxruntime": _onnxruntime, "openvino": _openvino}[name]
    try:
        return Engine(name, make(file.read_bytes(), bfloat16))
    except Exception as error:  # files from elsewhere can be wrong in any way
        raise UserError(
            f"{TITLES[name]} cannot read {file} ({reason(error)}): promote the model again, or ask for a new copy."
        ) from error


def _onnxruntime(model: bytes, bfloat16: bool) -> Callable[[np.ndarray], list[np.ndarray]]:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["p_fake", "novelty"], {"pixels": pixels})


def _openvino(model: bytes, bfloat16: bool) -> Callable[[np.ndarray], list[np.ndarray]]:
    import torch

    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = _openvino_core().compile_model(_openvino_core().read_model(model, b""), "CPU", options)

    def compute(pixels: np.ndarray) -> list[np.ndarray]:
        found = compiled([pixels])
        return [np.array(found[name]) for name in ("p_fake", "novelty")]

    return compute


@cache
def _openvino_core() -> openvino.Core:
    """OpenVINO, one for the whole process.

    On processors with AMX, each gives the thread an alternate signal stack and restores the previous one when it is deleted. Where
    the older of two is deleted first, that stack no longer exists, and the next signal, such as the end of a child, is a crash.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # `import openvino` would send an event
    import openvino

    return openvino.Core()
