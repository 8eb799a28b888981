"""Novelty: how unlike the training images an image is, as the distance to its nearest neighbours (Sun et al. 2022).

The features are those that the classifier's head receives, scaled to length 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from dfganext.errors import UserError, reason

NEIGHBOURS = 10
"""Novelty is the distance to the neighbour of this rank, or to the last if there are fewer."""

MAX_IMAGES = 2000
"""Training images whose features are kept: 3 MB with the 768 features of ConvNeXt-T."""


class Neighbours:
    """The features of training images.

    Args:
        features: float16 (n, d).

    Attributes:
        normalised: float32 (n, d), of length 1.
    """

    def __init__(self, features: np.ndarray) -> None:
        self.features, self.normalised = features, _normalise(features)

    @classmethod
    def of(cls, features: np.ndarray) -> Neighbours:
        """From the features of training images, (n, d)."""
        return cls(_normalise(features).astype(np.float16))

    @classmethod
    def load(cls, path: Path) -> Neighbours:
        """UserError if the file is missing or damaged."""
        try:
            return cls(load_file(path)["features"])
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(
                f"{path} holds no features of training images ({reason(error)}); `dvc repro evaluate` writes them, or "
                "ask for a new copy of the model."
            ) from error

    def save(self, path: Path) -> None:
        path.write_bytes(save({"features": self.features}))

    def novelty(self, features: np.ndarray) -> np.ndarray:
        """Cosine distance, 0...2, to the nearest neighbour of rank `NEIGHBOURS`: (n, d) -> float64 (n,)."""
        similarities = _normalise(features) @ self.normalised.T
        rank = min(NEIGHBOURS, len(self.features))
        nearest = np.partition(similarities, -rank, axis=1)[:, -rank]
        return 1 - nearest.astype(np.float64)


def _normalise(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
