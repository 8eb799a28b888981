"""The rival of `benchmarks.serve`: a PyTorch model served by MLflow, as an expert would write it in one short file.

MLflow executes this file alone, so it imports nothing of this project. Artifacts: `weights`, a safetensors file, and
`config`, a JSON object with architecture, outputs, size, mean, std and precision.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from PIL import Image
from safetensors.torch import load_file


class Classifier(PythonModel):
    """Column `image` (base64 of an encoded image) -> one record per image with p_fake."""

    def load_context(self, context: Any) -> None:
        self.config = config = json.loads(Path(context.artifacts["config"]).read_text(encoding="utf-8"))
        model = timm.create_model(config["architecture"], num_classes=config["outputs"])
        model.load_state_dict(load_file(context.artifacts["weights"]))
        self.model = model.eval().to(memory_format=torch.channels_last)
        self.mean, self.std = (255 * torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
        self.lock = threading.Lock()  # requests come in threads: two simultaneous forward passes would share the cores

    @torch.inference_mode()
    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, float]]:
        images = torch.from_numpy(np.stack([self.decoded(text) for text in model_input["image"]]))
        pixels = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        with self.lock, torch.autocast("cpu", torch.bfloat16, enabled=self.config["precision"] == "bfloat16"):
            logits = self.model(pixels)
        return [{"p_fake": p_fake} for p_fake in logits.float().softmax(1)[:, 1].tolist()]

    def decoded(self, text: str) -> np.ndarray:
        """Base64 -> uint8 (size, size, 3)."""
        size = self.config["size"]
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))


set_model(Classifier())
