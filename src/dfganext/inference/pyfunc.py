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

runtime.prepare(server=True)

from dfganext.inference.batching import MicroBatcher  # noqa: E402
from dfganext.inference.detector import Detector, Prediction, stability_record  # noqa: E402 - imports PyTorch

BATCH = 32
"""Images that are decoded at a time, to bound the memory of large requests."""


class FakeFaceDetector(PythonModel):
    """Column `image` (base64 of an encoded image, or a data URL) -> one record per image, in order.

    A record has label ("real" or "fake"), p_fake (0...1), threshold, decision ("real", "fake" or "unsure") and reason (of
    "unsure", else null); with the parameter explain also heatmap, a PNG in base64; with stability also decision and p_fake of
    copies of the image, and which of them change the decision. An image that cannot be decoded has null for the first four, and
    error says why.
    """

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["detector"])
        # requests come in threads
        self.batcher = MicroBatcher(lambda pixels: self.detector.scores(pixels), BATCH)
        self.detector = self.batcher.run_exclusive(lambda: Detector.load(folder))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[dict]:
        explain, stability = (bool((params or {}).get(name, False)) for name in ("explain", "stability"))
        records: list[dict] = []
        column = list(model_input["image"])
        for start in range(0, len(column), BATCH):
            records += self._predict(column[start : start + BATCH], explain, stability)
        return records

    def _predict(self, texts: list[object], explain: bool, stability: bool) -> list[dict]:
        """One record per text, in order; text that is not base64 gets an error of its own."""
        data: list[bytes | str] = []
        for text in texts:
            try:
                data.append(image_bytes(text))
            except ValueError as error:
                data.append(str(error))
        if explain:  # Grad-CAM adds hooks to the shared network
            predictions = self.batcher.run_exclusive(
                lambda: self.detector.predict(data, explain=True, stability=stability)
            )
        else:
            predictions = self.detector.predict(data, scores=self.batcher, stability=stability)
        return [record(prediction) for prediction in predictions]


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


def record(prediction: Prediction) -> dict:
    """A prediction as JSON values."""
    names = ("label", "p_fake", "threshold", "decision", "reason")
    fields: dict = {name: getattr(prediction, name) for name in names}
    if prediction.error is not None:
        fields["error"] = prediction.error
    if prediction.heatmap is not None:
        fields["heatmap"] = base64.b64encode(prediction.heatmap).decode("ascii")
    if prediction.stability is not None:
        fields["stability"] = stability_record(prediction)
    return fields


set_model(FakeFaceDetector())
