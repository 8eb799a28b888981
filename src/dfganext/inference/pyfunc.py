"""The registered model, for MLflow to execute from this file ("models from code"): base64 images in, predictions out."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from dfganext import runtime

runtime.prepare()

from dfganext.inference.batching import MicroBatcher  # noqa: E402
from dfganext.inference.detector import Detector, Prediction  # noqa: E402 - imports PyTorch

BATCH = 32
"""Images that are decoded at a time, to bound the memory of large requests."""


class FakeFaceDetector(PythonModel):
    """Column `image` (base64 of an encoded image, or a data URL) -> one record per image, in order.

    A record has label ("real" or "fake"), p_fake (0...1) and threshold; with the parameter explain also heatmap, a PNG in
    base64. An image that cannot be decoded has null for label and p_fake, and the reason as error.
    """

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["detector"])
        # requests come in threads
        self.batcher = MicroBatcher(lambda pixels: self.detector.probabilities(pixels), BATCH)
        self.detector = self.batcher.run_exclusive(lambda: Detector.load(folder))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[dict]:
        explain = bool((params or {}).get("explain", False))
        records: list[dict] = []
        column = list(model_input["image"])
        for start in range(0, len(column), BATCH):
            records += self._predict(column[start : start + BATCH], explain)
        return records

    def _predict(self, texts: list[object], explain: bool) -> list[dict]:
        """One record per text, in order; text that is not base64 gets an error of its own."""
        data: list[bytes | str] = []
        for text in texts:
            try:
                data.append(image_bytes(text))
            except ValueError as error:
                data.append(str(error))
        if explain:  # Grad-CAM adds hooks to the shared network
            predictions = self.batcher.run_exclusive(lambda: self.detector.predict(data, explain=True))
        else:
            predictions = self.detector.predict(data, probabilities=self.batcher)
        return [record(prediction, explain) for prediction in predictions]


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


def record(prediction: Prediction, explain: bool) -> dict:
    """A prediction as JSON values."""
    fields: dict = {"label": prediction.label, "p_fake": prediction.p_fake, "threshold": prediction.threshold}
    if prediction.error is not None:
        fields["error"] = prediction.error
    elif explain and prediction.heatmap is not None:
        fields["heatmap"] = base64.b64encode(prediction.heatmap).decode("ascii")
    return fields


set_model(FakeFaceDetector())
