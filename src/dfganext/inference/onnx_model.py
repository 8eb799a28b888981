"""A detector as an ONNX model.

Its input is `pixels`, uint8 (N, size, size, 3); its outputs are p_fake and novelty, float32 (N,). It includes normalisation, the
network in float32, the temperature, and the features of training images.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dfganext.errors import UserError, reason
from dfganext.inference import engines
from dfganext.inference.detector import Detector
from dfganext.models import classifier
from dfganext.models.novelty import NEIGHBOURS


def write(detector: Detector, file: Path, advice: str, engine: str = "onnxruntime") -> None:
    """Write a detector, on the CPU, as an ONNX model, and compare an engine with PyTorch on random images.

    Args:
        advice: what to do where the architecture cannot be exported; ends the message.

    Raises:
        UserError: a package is missing, the architecture cannot be exported, or the engine gives other scores.
    """
    if not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise UserError("The export to ONNX needs packages that are not installed: pip install 'df-ganext[onnx]'.")
    engines.require(engine)
    _export(detector, file, advice)
    size = detector.config.size
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    exact = copy.copy(detector)
    exact.precision, exact.engine = "float32", None
    difference = np.abs(engines.load(engine, file).scores(pixels) - exact.scores(pixels)).max()
    if not difference <= engines.MAX_DIFFERENCE:
        raise UserError(
            f"{detector.config.architecture} gives other predictions in {engines.TITLES[engine]} (p_fake or novelty differ by "
            f"up to {difference:.2g}): {advice}."
        )


class _Scores(nn.Module):
    """p_fake and novelty, float32 (N,), of pixels, uint8 (N, size, size, 3): `Detector.scores` as one graph."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.model, self.config = detector.model, detector.config
        self.head = classifier.head(detector.model)
        self.temperature = detector.temperature
        known = np.empty((0, 0), np.float32) if detector.neighbours is None else detector.neighbours.normalised.T.copy()
        self.known = nn.Buffer(torch.from_numpy(known))  # (C, n)
        self.rank = min(NEIGHBOURS, known.shape[1])

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        spatial = self.model.forward_features(classifier.preprocess(pixels, self.config))  # type: ignore[operator]
        features = self.model.forward_head(spatial, pre_logits=True).flatten(1)  # type: ignore[operator]
        p_fake = torch.sigmoid(classifier.fake_logits(self.head(features)) / self.temperature)
        if not self.rank:
            return p_fake, torch.zeros_like(p_fake)
        similarities = nn.functional.normalize(features) @ self.known
        return p_fake, 1 - similarities.topk(self.rank).values[:, -1]


def _export(detector: Detector, file: Path, advice: str) -> None:
    size, architecture = detector.config.size, detector.config.architecture
    pixels = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about PyTorch's own code
        try:
            torch.onnx.export(
                _Scores(detector).eval(),
                (pixels,),
                file,
                input_names=["pixels"],
                output_names=["p_fake", "novelty"],
                dynamic_shapes={"pixels": {0: torch.export.Dim("images")}},
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises many kinds
            raise UserError(f"{architecture} cannot be exported to ONNX ({reason(error)}): {advice}.") from error
