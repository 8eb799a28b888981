"""From the bytes of an image file to a prediction, for `dfganext predict`, `dfganext score`, promotion and the served model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from dfganext import images, labels, paths
from dfganext.errors import UserError
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


class OperatingPoint(BaseModel):
    """The content of an operating point's file; None where a value is missing."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    threshold: float | None = None
    temperature: float | None = Field(default=None, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"


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
        self.threshold, self.precision = threshold, precision
        self.calibrated = temperature is not None
        self.temperature = 1.0 if temperature is None else temperature

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
        point = _read_operating_point(operating_point or folder / OPERATING_POINT_FILE, threshold)
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, config, **dict(point))

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


def _read_operating_point(path: Path, threshold: float | None) -> OperatingPoint:
    """The operating point of a file. UserError if the file is missing, wrong or incomplete.

    A given threshold replaces the file's. The file then may be missing or lack the temperature.
    """
    point = OperatingPoint()
    try:
        point = OperatingPoint.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        if threshold is None:
            raise UserError(f"{path} is missing: {_WHAT_TO_DO}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); `dvc repro evaluate` writes one.") from error
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise UserError(f"{path} is not an operating point ({reason}); `dvc repro evaluate` writes one.") from error
    if threshold is not None:
        return point.model_copy(update={"threshold": threshold})
    if missing := [name for name in ("threshold", "temperature") if getattr(point, name) is None]:
        raise UserError(f"{path} has no {' and no '.join(missing)}: {_WHAT_TO_DO}")
    return point
