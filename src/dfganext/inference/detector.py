"""From the bytes of an image file to a prediction, for `dfganext predict`, `dfganext score`, promotion and the served model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from dfganext import images, labels
from dfganext.evaluation import calibration
from dfganext.evaluation.decision import DecisionRule, decide
from dfganext.inference import engines
from dfganext.inference.engines import Engine
from dfganext.inference.operating_point import read_operating_point
from dfganext.models import classifier
from dfganext.models.classifier import ClassifierConfig
from dfganext.models.folder import FEATURES_FILE, ONNX_FILE, OPERATING_POINT_FILE
from dfganext.models.novelty import Neighbours
from dfganext.training import compute


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    label is "real" or "fake" and p_fake the probability of "fake", 0...1; an image is fake where p_fake > threshold. decision is
    "real", "fake" or "unsure", and reason says why it is "unsure". All four are None where the image could not be decoded, and
    error says why. On request, heatmap is a PNG (bytes), and stability the predictions for copies of the image, by name.
    """

    label: str | None
    p_fake: float | None
    threshold: float
    error: str | None = None
    heatmap: bytes | None = None
    decision: str | None = None
    reason: str | None = None
    stability: dict[str, Prediction] | None = None

    @property
    def changes(self) -> dict[str, str]:
        """The copies for which the decision is another, with that decision."""
        copies = (self.stability or {}).items()
        return {name: str(copy.decision) for name, copy in copies if copy.decision != self.decision}


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "jpeg_75": lambda image: images.as_jpeg(image, 75),
    "jpeg_50": lambda image: images.as_jpeg(image, 50),
    "half_size": lambda image: images.scaled(image, 0.5),
}
"""The copies of an image for the stability check: saved again at two qualities, and scaled to half its size."""


class Prepared(NamedTuple):
    """An image as the network takes it. pixels: uint8 (1, size, size, 3), followed by its `COPIES` where stability is checked; None
    with an error."""

    pixels: np.ndarray | None
    error: str | None = None


def stability_record(prediction: Prediction) -> dict:
    """The decisions for the copies of an image, as JSON values, and the names of the copies that change the decision."""
    copies = (prediction.stability or {}).items()
    return {
        **{name: {"decision": copy.decision, "p_fake": copy.p_fake} for name, copy in copies},
        "changes": list(prediction.changes),
    }


class Detector:
    """A trained classifier with its operating point: the temperature of its probabilities, and the threshold on them.

    calibrated: whether the temperature is known; otherwise (None) it is 1 and p_fake is not calibrated. decision: the rule for
    decisions; None for models without one. neighbours: features of training images, for the rule's novelty. engine: computes
    scores in place of PyTorch.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ClassifierConfig,
        threshold: float,
        temperature: float | None,
        precision: str = "float32",
        decision: DecisionRule | None = None,
        neighbours: Neighbours | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.model, self.config = model.eval().to(memory_format=torch.channels_last), config
        self.threshold, self.precision = threshold, precision
        self.calibrated = temperature is not None
        self.temperature = 1.0 if temperature is None else temperature
        self.decision, self.neighbours, self.engine = decision, neighbours, engine

    @classmethod
    def load(
        cls,
        folder: Path,
        operating_point: Path | None = None,
        device: torch.device | None = None,
        threshold: float | None = None,
    ) -> Detector:
        """Read a classifier from its folder.

        Args:
            operating_point: JSON file with threshold, temperature and rule for decisions, and with precision and engine if they
                are not float32 and torch; by default the one in the folder. Beside it are the features that the rule needs and
                the ONNX model that the engine needs.
            device: by default a GPU where there is one. Engines are used on a CPU only.
            threshold: between 0 and 1, used in place of that of the file, which then may be missing or incomplete.

        Raises:
            UserError: the folder has no classifier, or a damaged one; the file is missing or is not an operating point; the engine
                is not installed.
        """
        file = operating_point or folder / OPERATING_POINT_FILE
        point = read_operating_point(file, threshold)
        model, config = classifier.load(folder)
        neighbours = Neighbours.load(file.parent / FEATURES_FILE) if point.needs_features else None
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        values = dict(point)
        name, engine = values.pop("engine"), None
        if name != "torch" and device.type == "cpu":
            engine = engines.load(name, file.parent / ONNX_FILE, _uses_bfloat16(point.precision, device))
        return cls(model.to(device), config, **values, neighbours=neighbours, engine=engine)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        """Calibrated p_fake and novelty of images at the model's own size: uint8 (N, size, size, 3) -> float64 (N, 2).

        Novelty is 0 for a model without features of training images. bfloat16 is used only where the device supports it;
        float32 elsewhere.
        """
        if self.engine is not None:
            return self.engine.scores(pixels)
        p_fake, features = self._predict(pixels)
        novelty = np.zeros(len(pixels)) if self.neighbours is None else self.neighbours.novelty(features)
        return np.stack([p_fake, novelty], axis=1)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Calibrated p_fake, the first column of `scores`: (N,)."""
        return self._predict(pixels)[0] if self.engine is None else self.scores(pixels)[:, 0]

    @cached_property
    def _rounded(self) -> nn.Module:
        """The model with weights in bfloat16, which autocast would round in every call: a fifth of an image's time."""
        rounded = copy.deepcopy(self.model)
        for module in rounded.modules():
            if type(module) in (nn.Linear, nn.Conv2d):  # their subclasses may compute with the weights
                module.to(torch.bfloat16)
        return rounded

    def _predict(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fast = _uses_bfloat16(self.precision, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast):
            model = self._rounded if fast else self.model
            outputs, features = classifier.predict(model, self.config, pixels, device=self.device)
        return calibration.apply(classifier.fake_logits(outputs).astype(np.float64), self.temperature), features

    def predict(
        self,
        encoded: Sequence[bytes | str],
        explain: bool = False,
        scores: Callable[[np.ndarray], np.ndarray] | None = None,
        stability: bool = False,
    ) -> list[Prediction]:
        """One prediction per encoded image, in order; an image that cannot be decoded gets an error, and does not affect the others.

        Args:
            encoded: the bytes of image files; a text in place of bytes becomes that image's error.
            explain: also compute heat maps.
            scores: replaces the method of this name, for example by a `MicroBatcher`.
            stability: also predict the `COPIES` of each image.
        """
        return self.predict_prepared([self.prepare(data, stability) for data in encoded], explain, scores)

    def prepare(self, data: bytes | str, stability: bool = False) -> Prepared:
        """The first half of `predict`, for one image. It does not use the network, so that threads can prepare the next images."""
        if isinstance(data, str):
            return Prepared(None, data)
        try:
            image = images.decode(data)
            copies = [image, *(copy(image) for copy in COPIES.values())] if stability else [image]
        except images.ImageError as error:
            return Prepared(None, str(error))
        return Prepared(np.stack([self.config.prepare(copy) for copy in copies]))

    def predict_prepared(
        self,
        prepared: Sequence[Prepared],
        explain: bool = False,
        scores: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> list[Prediction]:
        """The second half of `predict`."""
        pixels = [one.pixels for one in prepared if one.pixels is not None]
        if not pixels:
            return [Prediction(None, None, self.threshold, error=one.error) for one in prepared]
        found = iter((scores or self.scores)(np.concatenate(pixels)).reshape(len(pixels), -1, 2))
        heatmaps = iter(self._heatmaps(np.stack([own[0] for own in pixels])) if explain else [])
        predictions = []
        for one in prepared:
            if one.pixels is None:
                predictions.append(Prediction(None, None, self.threshold, error=one.error))
                continue
            own, *copies = (self._prediction(*values) for values in next(found))
            stability = dict(zip(COPIES, copies, strict=True)) if copies else None
            predictions.append(dataclasses.replace(own, heatmap=next(heatmaps, None), stability=stability))
        return predictions

    def _prediction(self, p_fake: float, novelty: float) -> Prediction:
        label = labels.NAMES[int(p_fake > self.threshold)]
        decision, reason = decide(self.decision, p_fake, novelty)
        return Prediction(label, float(p_fake), self.threshold, decision=decision, reason=reason)

    def _heatmaps(self, pixels: np.ndarray) -> list[bytes]:
        """PNGs of the images, overlaid with the Grad-CAM of "fake"."""
        from dfganext.explain import gradcam  # imports matplotlib and scikit-learn

        raw = gradcam.raw_maps(self.model, self.config, pixels, [labels.FAKE] * len(pixels))
        return [gradcam.png(gradcam.overlay(image, heatmap)) for image, heatmap in zip(pixels, raw, strict=True)]


def _uses_bfloat16(precision: str, device: torch.device) -> bool:
    return precision == "bfloat16" and compute.precision("auto", device) == torch.bfloat16
