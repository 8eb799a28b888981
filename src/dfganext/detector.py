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

from dfganext import images, labels
from dfganext.errors import UserError, one_line
from dfganext.evaluation import calibration
from dfganext.models import classifier
from dfganext.models.classifier import ClassifierConfig
from dfganext.training import compute

OPERATING_POINT_FILE = "operating_point.json"


@dataclass(frozen=True)
class Verdict:
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
    """A trained classifier with its operating point: the temperature of its probabilities, and the threshold on them."""

    def __init__(
        self,
        model: nn.Module,
        config: ClassifierConfig,
        threshold: float = 0.5,
        temperature: float = 1.0,
        precision: str = "float32",
    ) -> None:
        self.model, self.config = model.eval().to(memory_format=torch.channels_last), config
        self.threshold, self.temperature, self.precision = threshold, temperature, precision

    @classmethod
    def load(cls, folder: Path, operating_point: Path | None = None, device: torch.device | None = None) -> Detector:
        """Read a classifier from its folder.

        Args:
            operating_point: file with threshold, temperature and perhaps precision; by default the one in the folder, and
                0.5, 1 and float32 where that has none.
            device: by default a GPU where there is one.

        Raises:
            UserError: the folder holds no classifier, or a damaged one; the file is no operating point.
        """
        model, config = classifier.load(folder)
        own = folder / OPERATING_POINT_FILE
        if operating_point is None and own.exists():
            operating_point = own
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, config, **({} if operating_point is None else _read_point(operating_point)))

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Calibrated p_fake of images at the model's own size: uint8 (N, size, size, 3) -> float64 (N,).

        With the precision bfloat16 it is computed so where the processor has it, in float32 elsewhere.
        """
        device = next(self.model.parameters()).device
        fast = self.precision == "bfloat16" and compute.precision("auto", device) == torch.bfloat16
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            logits = classifier.predict_logits(self.model, self.config, pixels, device=device)
        return calibration.apply(logits, self.temperature)

    def judge(
        self,
        encoded: Sequence[bytes | str],
        explain: bool = False,
        probabilities: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> list[Verdict]:
        """One verdict an encoded image, in order; an image that cannot be decoded gets an error and harms no other.

        A text in the place of an image's bytes says why there are none: it is that image's error.
        probabilities stands in for the method of this name where its calls are to be answered elsewhere, such as together.
        """
        verdicts: list[Verdict | None] = [None] * len(encoded)
        pixels, places = [], []
        for place, data in enumerate(encoded):
            if isinstance(data, str):
                verdicts[place] = Verdict(None, None, self.threshold, error=data)
                continue
            try:
                pixels.append(self.config.prepare(images.decode(data)))
                places.append(place)
            except images.ImageError as error:
                verdicts[place] = Verdict(None, None, self.threshold, error=str(error))
        if pixels:
            stack = np.stack(pixels)
            heatmaps = self._heatmaps(stack) if explain else [None] * len(stack)
            for place, p_fake, heatmap in zip(
                places, (probabilities or self.probabilities)(stack), heatmaps, strict=True
            ):
                label = labels.NAMES[int(p_fake > self.threshold)]
                verdicts[place] = Verdict(label, float(p_fake), self.threshold, heatmap=heatmap)
        return [verdict for verdict in verdicts if verdict is not None]

    def _heatmaps(self, pixels: np.ndarray) -> list[bytes]:
        """Overlays of where the evidence for "fake" lies."""
        from dfganext.explain import gradcam  # imports matplotlib and scikit-learn: only where a map is asked for

        raw = gradcam.raw_maps(self.model, self.config, pixels, [labels.FAKE] * len(pixels))
        return [gradcam.png(gradcam.overlay(image, one)) for image, one in zip(pixels, raw, strict=True)]


def _read_point(path: Path) -> dict[str, Any]:
    """Those of threshold, temperature and precision that an operating point's file has."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError("no mapping of names to values")
        point = {name: found[name] for name in ("threshold", "temperature", "precision") if name in found}
        if not (math.isfinite(point.get("threshold", 0.5)) and 0 < point.get("temperature", 1.0) < math.inf):
            raise ValueError("threshold and temperature are to be finite, the temperature above 0")
        if point.get("precision", "float32") not in ("float32", "bfloat16"):
            raise ValueError("precision is to be float32 or bfloat16")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `dvc repro evaluate` makes it.") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} holds no operating point ({one_line(error)}); `dvc repro evaluate` makes one."
        ) from error
    return point
