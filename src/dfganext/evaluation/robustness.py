"""A detector's metrics on images degraded as on the web: compressed, resized, blurred (Wang et al. 2020, CNNDetection).

Both classes are degraded in the same way. The decision threshold stays the one chosen on the validation split.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from dfganext.evaluation import intervals, selective
from dfganext.evaluation.decision import DecisionRule
from dfganext.images import as_jpeg, resize
from dfganext.labels import FAKE, REAL
from dfganext.settings import Augment, Degradation

BLOCK = 64
"""Images degraded and predicted at a time."""


@dataclass(frozen=True)
class Condition:
    """See `apply`."""

    transform: str
    strength: float


CONDITIONS = (
    Condition("none", 0),
    *(Condition("jpeg", quality) for quality in (95, 90, 75, 50, 30)),
    *(Condition("webp", quality) for quality in (90, 75, 50, 30)),
    *(Condition("blur", sigma) for sigma in (0.5, 1, 2, 3)),
    *(Condition("downscale", factor) for factor in (0.75, 0.5, 0.25)),
    *(Condition("noise", std) for std in (2, 5, 10, 20)),
    *(Condition("crop", share) for share in (0.9, 0.8, 0.7)),
)


def apply(condition: Condition, image: np.ndarray, seed: int) -> np.ndarray:
    """Degrade one image. The condition's strength is:

    - "none": ignored.
    - "jpeg", "webp": the encoder's quality (JPEG with 4:2:0 chroma).
    - "blur": sigma of a Gaussian, in pixels.
    - "downscale": scale factor; the image is then resized back, both times antialiased.
    - "noise": standard deviation of Gaussian noise added to each channel, in grey levels.
    - "crop": share of the side; the centred square is kept and resized back.

    Args:
        image: uint8, (S, S, 3), as the result.
        seed: of the noise.
    """
    side, strength = len(image), condition.strength
    match condition.transform:
        case "none":
            return image
        case "jpeg":
            return as_jpeg(image, round(strength))
        case "webp":
            return _as_webp(image, round(strength))
        case "blur":
            return np.asarray(cv2.GaussianBlur(image, (0, 0), strength))
        case "downscale":
            return resize(resize(image, max(1, round(side * strength))), side)
        case "noise":
            noise = np.random.default_rng(seed).normal(0, strength, image.shape)
            return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
        case "crop":
            margin = min(round(side * (1 - strength) / 2), (side - 1) // 2)
            return resize(image[margin : side - margin, margin : side - margin], side)
    raise ValueError(f"unknown transform {condition.transform!r}")


TRAINED_BY = {
    "jpeg": "compression",
    "webp": "compression",
    "blur": "blur",
    "downscale": "rescale",
    "noise": "noise",
    "crop": "zoom",
}
"""The augmentation that degrades training images as a transform does."""


def is_trained_on(condition: Condition, augment: Augment) -> bool:
    """Whether training images are degraded in the same way, at strengths that include this one."""
    if condition.transform not in TRAINED_BY:
        return False
    degradation: Degradation = getattr(augment, TRAINED_BY[condition.transform])
    low, high = degradation.range
    strength = 1 / condition.strength if condition.transform == "crop" else condition.strength
    return degradation.p > 0 and low <= strength <= high


def measure(
    scores_of: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    threshold: float,
    conditions: Sequence[Condition] = CONDITIONS,
    seed: int = 0,
    groups: intervals.Groups = None,
    rule: DecisionRule | None = None,
) -> pd.DataFrame:
    """Evaluate a detector on the same images under every condition.

    All strengths of noise have the same pattern: it depends on the seed and the image's row.

    Args:
        scores_of: from uint8 (n, S, S, 3), n at most 64, to p_fake and novelty (n, 2).
        images: uint8, (N, S, S, 3); may be memory-mapped: one block is in memory at a time.
        labels, groups: (N,), both classes, and near-duplicate groups.
        threshold: an image is predicted fake where p_fake > threshold.
        rule: for decisions; without one, every image is unsure.

    Returns:
        One row per condition: transform, strength, images, accuracy and roc_auc with their 95 % intervals (accuracy_low, ...),
        fake_recall and real_recall, the share of each class that is predicted correctly; unsure, the share without a decision,
        novel, the part of it that is unlike the training images, and decided_accuracy, the accuracy of the decisions.
    """
    rows = []
    for condition in tqdm(conditions, "degraded copies", unit="condition", disable=None):
        score, novelty = _scores(scores_of, images, condition, seed).T
        correct = (score > threshold) == (labels == FAKE)
        accuracy_low, accuracy_high = intervals.proportion(correct, groups)
        roc_auc_low, roc_auc_high = intervals.roc_auc(labels, score, groups)
        row = {"transform": condition.transform, "strength": float(condition.strength), "images": len(labels)}
        row |= {"accuracy": correct.mean(), "accuracy_low": accuracy_low, "accuracy_high": accuracy_high}
        row |= {"roc_auc": roc_auc_score(labels, score), "roc_auc_low": roc_auc_low, "roc_auc_high": roc_auc_high}
        row |= {"fake_recall": correct[labels == FAKE].mean(), "real_recall": correct[labels == REAL].mean()}
        decisions = selective.measure(labels, *selective.decide(rule, score, novelty), groups)
        rows.append(row | selective.columns(decisions))
    return pd.DataFrame(rows)


def _scores(
    scores_of: Callable[[np.ndarray], np.ndarray], images: np.ndarray, condition: Condition, seed: int
) -> np.ndarray:
    def degraded(row: int) -> np.ndarray:
        own_seed = np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0]
        return apply(condition, images[row], int(own_seed))

    blocks = (range(start, min(start + BLOCK, len(images))) for start in range(0, len(images), BLOCK))
    return np.concatenate([scores_of(np.stack([degraded(row) for row in rows])) for rows in blocks]).astype(float)


def _as_webp(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))
