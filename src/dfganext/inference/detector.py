"""From the bytes of an image file to a prediction, for `dfganext predict`, `dfganext score`, promotion and the served model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dfganext import images, labels, paths
from dfganext.errors import UserError, one_line
from dfganext.evaluation import calibration
from dfganext.models import classifier
from dfganext.models.classifier import ClassifierConfig
from dfganext.training import compute

OPERATING_POINT_FILE = "operating_point.json"

NOT_CALIBRATED = "This model has no temperature, so 1 is used: p_fake is not calibrated."

_WHAT_TO_DO = (
    f"`dvc repro evaluate` writes one ({paths.OPERATING_POINT.as_posix()}): put it beside the weights that were evaluated; "
    "or give `dfganext predict` a threshold with --threshold."
)


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    label is "real" or "fake" and p_fake the probability of "fake", 0...1; an image is fake where p_fake > threshold. Both are
    None where the image could not be decoded, and error says why. heatmap is a PNG (bytes) if requested.
    """

    label: str | None
    p_fake: float | None
    threshold: float
    error: str | None = None
    heatmap: bytes | None = None


class Detector:
    """A trained classifier with its operating point: the temperature of its probabilities, and the threshold on them.

    calibrated: whether the temperature is known; otherwise (None) it is 1 and p_fake is not calibrated.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ClassifierConfig,
        threshold: float,
        temperature: float | None,
        precision: str = "float32",
    ) -> None:
        self.model, self.config = model.eval().to(memory_format=torch.channels_last), config
        self.calibrated = temperature is not None
        self.threshold, self.temperature, self.precision = (
            threshold,
            1.0 if temperature is None else temperature,
            precision,
        )

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
            operating_point: JSON file with threshold and temperature, and with the precision of evaluation if that is not
                float32; by default the one in the folder.
            device: by default a GPU where there is one.
            threshold: between 0 and 1, used in place of that of the file, which then may be missing or incomplete.

        Raises:
            UserError: the folder has no classifier, or a damaged one; the file is missing or is not an operating point.
        """
        if threshold is not None and not 0 <= threshold <= 1:  # NaN neither
            raise UserError(f"The threshold {threshold:g} is not between 0 and 1: give another.")
        model, config = classifier.load(folder)
        own = folder / OPERATING_POINT_FILE
        point = _read_operating_point(operating_point or own, threshold)
        return cls(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), config, **point)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Calibrated p_fake of images at the model's own size: uint8 (N, size, size, 3) -> float64 (N,).

        bfloat16 is used only where the device supports it; float32 elsewhere.
        """
        device = next(self.model.parameters()).device
        fast = self.precision == "bfloat16" and compute.precision("auto", device) == torch.bfloat16
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            logits = classifier.predict_logits(self.model, self.config, pixels, device=device)
        return calibration.apply(logits, self.temperature)

    def predict(
        self,
        encoded: Sequence[bytes | str],
        explain: bool = False,
        probabilities: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> list[Prediction]:
        """One prediction per encoded image, in order; an image that cannot be decoded gets an error, and does not affect the others.

        Args:
            encoded: the bytes of image files; a text in place of bytes becomes that image's error.
            explain: also compute heat maps.
            probabilities: replaces the method of this name, for example by a `MicroBatcher`.
        """
        predictions: list[Prediction | None] = [None] * len(encoded)
        pixels, places = [], []
        for place, data in enumerate(encoded):
            if isinstance(data, str):
                predictions[place] = Prediction(None, None, self.threshold, error=data)
                continue
            try:
                pixels.append(self.config.prepare(images.decode(data)))
                places.append(place)
            except images.ImageError as error:
                predictions[place] = Prediction(None, None, self.threshold, error=str(error))
        if pixels:
            stack = np.stack(pixels)
            heatmaps = self._heatmaps(stack) if explain else [None] * len(stack)
            for place, p_fake, heatmap in zip(
                places, (probabilities or self.probabilities)(stack), heatmaps, strict=True
            ):
                label = labels.NAMES[int(p_fake > self.threshold)]
                predictions[place] = Prediction(label, float(p_fake), self.threshold, heatmap=heatmap)
        return [prediction for prediction in predictions if prediction is not None]

    def _heatmaps(self, pixels: np.ndarray) -> list[bytes]:
        """PNGs of the images, overlaid with the Grad-CAM of "fake"."""
        from dfganext.explain import gradcam  # imports matplotlib and scikit-learn

        raw = gradcam.raw_maps(self.model, self.config, pixels, [labels.FAKE] * len(pixels))
        return [gradcam.png(gradcam.overlay(image, heatmap)) for image, heatmap in zip(pixels, raw, strict=True)]


def _read_operating_point(path: Path, threshold: float | None) -> dict[str, Any]:
    """threshold, temperature and, if present, precision of a file. UserError if the file is missing, wrong or incomplete.

    A given threshold replaces the file's. The file then may be missing or lack the temperature, which is returned as None.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("not an object of names and values")
        point = {name: content[name] for name in ("threshold", "temperature", "precision") if name in content}
        if any(isinstance(value, bool) for value in point.values()):
            raise TypeError("true and false are not allowed")
        if not (math.isfinite(point.get("threshold", 0.5)) and 0 < point.get("temperature", 1.0) < math.inf):
            raise ValueError("threshold and temperature must be finite, the temperature above 0")
        if point.get("precision", "float32") not in ("float32", "bfloat16"):
            raise ValueError("precision must be float32 or bfloat16")
    except FileNotFoundError:
        if threshold is None:
            raise UserError(f"{path} is missing: {_WHAT_TO_DO}") from None
        return {"threshold": threshold, "temperature": None}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not an operating point ({one_line(error)}); `dvc repro evaluate` writes one."
        ) from error
    if threshold is not None:
        return {"temperature": None, **point, "threshold": threshold}
    if missing := [name for name in ("threshold", "temperature") if name not in point]:
        raise UserError(f"{path} has no {' and no '.join(missing)}: {_WHAT_TO_DO}")
    return point
