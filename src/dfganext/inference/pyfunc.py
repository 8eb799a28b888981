"""The registered model, for MLflow to execute from this file ("models from code"): base64 images in, verdicts out."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from dfganext import runtime as process

process.prepare()

from dfganext.inference.batching import Together  # noqa: E402
from dfganext.inference.detector import Detector, Prediction  # noqa: E402 - imports PyTorch

BATCH = 32
"""Images decoded at a time, however many a request holds."""


class FakeFaceDetector(PythonModel):
    """Column `image` (base64 of an encoded image, or a data URL) -> a record an image, in order.

    A record has label ("real" or "fake"), p_fake (0...1) and threshold; with the parameter explain also heatmap, a PNG in
    base64. An image that cannot be judged has label and p_fake null and says why under error.
    """

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["detector"])
        # the server answers in threads
        self.together = Together(lambda: Detector.load(folder), Detector.probabilities, BATCH)
        self.detector = self.together.model

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[dict]:
        explain = bool((params or {}).get("explain", False))
        records: list[dict] = []
        column = list(model_input["image"])
        for start in range(0, len(column), BATCH):
            records += self._predict(column[start : start + BATCH], explain)
        return records

    def _predict(self, texts: list[object], explain: bool) -> list[dict]:
        """One record a text, in order; what is no base64 harms no other."""
        data: list[bytes | str] = []
        for text in texts:
            try:
                data.append(image_bytes(text))
            except ValueError as error:
                data.append(str(error))
        if explain:  # Grad-CAM hooks into the shared network
            verdicts = self.together.alone(lambda: self.detector.predict(data, explain=True))
        else:
            verdicts = self.detector.predict(data, probabilities=self.together)
        return [record(verdict, explain) for verdict in verdicts]


def image_bytes(text: object) -> bytes:
    """The bytes behind base64 text or a base64 data URL; ValueError, with a message for the sender, if it is neither."""
    if not isinstance(text, str):
        raise ValueError("not a text: send the image file's bytes as base64")
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise ValueError("a data URL must be data:<type>;base64,<base64>")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64: send the image file's bytes as base64") from None


def record(verdict: Prediction, explain: bool) -> dict:
    """A verdict as JSON can carry it."""
    fields: dict = {"label": verdict.label, "p_fake": verdict.p_fake, "threshold": verdict.threshold}
    if verdict.error is not None:
        fields["error"] = verdict.error
    elif explain and verdict.heatmap is not None:
        fields["heatmap"] = base64.b64encode(verdict.heatmap).decode("ascii")
    return fields


set_model(FakeFaceDetector())
