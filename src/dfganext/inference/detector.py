"""From the bytes of an image file to a verdict: what `dfganext predict`, promotion and the served model run."""

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

NOT_CALIBRATED = "No temperature is known for this model, so it is taken to be 1: p_fake is not calibrated."

_WHAT_TO_DO = (
    f"`dvc repro evaluate` writes one ({paths.OPERATING_POINT.as_posix()}), to be put beside the weights that it evaluated; "
    "or give `dfganext predict` a threshold with --threshold."
)


@dataclass(frozen=True)
class Prediction:
    """What is said of one image.

    label is "real" or "fake" and p_fake the probability of "fake", 0...1; an image is fake where p_fake > threshold. Both are
    None where the image could not be judged, and error says why. heatmap is a PNG (bytes) where one was asked for.
    """

    label: str | None
    p_fake: float | None
    threshold: float
    error: str | None = None
    heatmap: bytes | None = None


class Detector:
    """A trained classifier with its operating point: the temperature of its probabilities, and the threshold on them.

    calibrated: whether the temperature is known; where it is not (None), it is 1 and p_fake is not calibrated.
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
            operating_point: file with threshold and temperature, and with precision where that is not float32, in which
                evaluation computes; by default the one in the folder.
            device: by default a GPU where there is one.
            threshold: between 0 and 1, in place of the file's; with it, the file may be missing or lack values.

        Raises:
            UserError: the folder holds no classifier, or a damaged one; the file is missing or is no operating point.
        """
        if threshold is not None and not 0 <= threshold <= 1:  # NaN neither
            raise UserError(f"The threshold {threshold:g} is not between 0 and 1: give another.")
        model, config = classifier.load(folder)
        own = folder / OPERATING_POINT_FILE
        point = _read_point(operating_point or own, threshold)
        return cls(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), config, **point)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Calibrated p_fake of images at the model's own size: uint8 (N, size, size, 3) -> float64 (N,).

        With the precision bfloat16 it is computed so where the processor has it, in float32 elsewhere.
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
        """One verdict an encoded image, in order; an image that cannot be decoded gets an error and harms no other.

        A text in the place of an image's bytes says why there are none: it is that image's error.
        probabilities stands in for the method of this name where its calls are to be answered elsewhere, such as together.
        """
        verdicts: list[Prediction | None] = [None] * len(encoded)
        pixels, places = [], []
        for place, data in enumerate(encoded):
            if isinstance(data, str):
                verdicts[place] = Prediction(None, None, self.threshold, error=data)
                continue
            try:
                pixels.append(self.config.prepare(images.decode(data)))
                places.append(place)
            except images.ImageError as error:
                verdicts[place] = Prediction(None, None, self.threshold, error=str(error))
        if pixels:
            stack = np.stack(pixels)
            heatmaps = self._heatmaps(stack) if explain else [None] * len(stack)
            for place, p_fake, heatmap in zip(
                places, (probabilities or self.probabilities)(stack), heatmaps, strict=True
            ):
                label = labels.NAMES[int(p_fake > self.threshold)]
                verdicts[place] = Prediction(label, float(p_fake), self.threshold, heatmap=heatmap)
        return [verdict for verdict in verdicts if verdict is not None]

    def _heatmaps(self, pixels: np.ndarray) -> list[bytes]:
        """Overlays of where the evidence for "fake" lies."""
        from dfganext.explain import gradcam  # imports matplotlib and scikit-learn: only where a map is asked for

        raw = gradcam.raw_maps(self.model, self.config, pixels, [labels.FAKE] * len(pixels))
        return [gradcam.png(gradcam.overlay(image, one)) for image, one in zip(pixels, raw, strict=True)]


def _read_point(path: Path, threshold: float | None) -> dict[str, Any]:
    """threshold, temperature, and precision if named, of an operating point's file; a threshold that is given wins.

    With a given threshold, the file need not exist or hold a threshold and a temperature: the temperature is None then.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError("no mapping of names to values")
        point = {name: found[name] for name in ("threshold", "temperature", "precision") if name in found}
        if any(isinstance(value, bool) for value in point.values()):
            raise TypeError("true and false are no values of an operating point")
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
            f"{path} holds no operating point ({one_line(error)}); `dvc repro evaluate` makes one."
        ) from error
    if threshold is not None:
        return {"temperature": None, **point, "threshold": threshold}
    if missing := [name for name in ("threshold", "temperature") if name not in point]:
        raise UserError(f"{path} has no {' and no '.join(missing)}: {_WHAT_TO_DO}")
    return point
