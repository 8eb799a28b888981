"""Does a map show what the network uses? Deletion and insertion (RISE, Petsiuk et al. 2018), against uninformed maps."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
from scipy import stats
from torch import nn
from tqdm import tqdm

from dfganext.evaluation import calibration, intervals
from dfganext.explain.gradcam import enlarge
from dfganext.labels import FAKE
from dfganext.models.classifier import ClassifierConfig, predict_logits

CURVES = ("deletion", "insertion")
RANKINGS = ("gradcam", "random", "centred")
BASELINES = RANKINGS[1:]


def curves(
    model: nn.Module,
    config: ClassifierConfig,
    images: np.ndarray,
    maps: np.ndarray,
    targets: np.ndarray,
    steps: int = 16,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Probability of the target class as pixels are removed (deletion) or shown (insertion), the highest-ranked first.

    Deletion replaces a pixel by the image's mean colour; insertion starts from the image blurred with a sigma of a tenth of
    its size. Pixels are ranked by the map, by a random map, which also orders ties, and by nearness to the centre.

    Args:
        images: uint8, (N, size, size, 3).
        maps: (N, h, w), each for its target.
        targets: (N,), 0 real or 1 fake.
        steps: number of equal parts in which pixels are removed or shown.
        seed: of the random maps.

    Returns:
        One row per image, curve and ranking: auc, the area under the curve over the share of pixels, 0...1.
        One row per curve, ranking and fraction of pixels: probability, the mean over images.
    """
    device = next(model.parameters()).device
    areas = []
    fractions = np.linspace(0, 1, steps + 1)
    total = {(curve, ranking): np.zeros(steps + 1) for curve in CURVES for ranking in RANKINGS}
    shown = tqdm(
        zip(images, maps, targets, strict=True), "deletion and insertion", len(images), unit="image", disable=None
    )
    for number, (image, one, target) in enumerate(shown):
        orders = _orders(one, image.shape[0], np.random.default_rng([seed, number]))
        stages = np.concatenate([_stages(np.array(image), orders[name], fractions, curve) for curve, name in total])
        first, place = _distinct(stages)
        logits = predict_logits(model, config, stages[first], device=device)[place] * (1 if target == FAKE else -1)
        probabilities = calibration.apply(logits, 1.0).reshape(len(total), steps + 1)
        for (curve, ranking), values in zip(total, probabilities, strict=True):
            total[curve, ranking] += values
            area = float(np.trapezoid(values, fractions))
            areas.append({"image": number, "curve": curve, "ranking": ranking, "auc": area})
    means = [
        pd.DataFrame({"curve": curve, "ranking": ranking, "fraction": fractions, "probability": values / len(images)})
        for (curve, ranking), values in total.items()
    ]
    return pd.DataFrame(areas), pd.concat(means, ignore_index=True)


def against(areas: pd.DataFrame, groups: intervals.Groups = None) -> pd.DataFrame:
    """Areas under Grad-CAM's curves minus those of each baseline ranking, on the same images.

    Args:
        areas: from `curves`.
        groups: (N,), the near-duplicate group of each image.

    Returns:
        One row per curve and baseline ranking: difference (mean over images; below 0 is good for deletion, above 0 for
        insertion), low and high (95 %, `intervals.mean`), p (Wilcoxon's signed ranks; 1 if nothing differs), images.
    """
    rows = []
    for curve in CURVES:
        by_ranking = areas[areas.curve == curve].pivot(index="image", columns="ranking", values="auc")
        for ranking in BASELINES:
            gaps = (by_ranking["gradcam"] - by_ranking[ranking]).to_numpy()
            low, high = intervals.mean(gaps, groups)
            p = float(stats.wilcoxon(gaps).pvalue) if np.any(gaps != 0) else 1.0
            rows.append((curve, ranking, float(gaps.mean()), low, high, p, len(gaps)))
    return pd.DataFrame(rows, columns=["curve", "ranking", "difference", "low", "high", "p", "images"])


def _orders(raw: np.ndarray, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """For each ranking, the position of every pixel in it: (size, size), 0 is the first."""
    axis = np.arange(size) - (size - 1) / 2
    ranked_by = {
        "gradcam": enlarge(raw, size),
        "random": enlarge(rng.random(raw.shape), size),
        "centred": -np.hypot(*np.meshgrid(axis, axis)),
    }
    orders = {}
    for name, values in ranked_by.items():
        first = np.lexsort([-ranked_by["random"].ravel(), -values.ravel()])
        orders[name] = np.argsort(first).reshape(size, size)  # the inverse permutation
    return orders


def _distinct(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of N images, the places of the distinct ones, and for each image which of them it equals: all curves share their ends."""
    _, first, place = np.unique(
        np.array([image.tobytes() for image in images], object), return_index=True, return_inverse=True
    )
    return first, place


def _stages(image: np.ndarray, order: np.ndarray, fractions: np.ndarray, curve: str) -> np.ndarray:
    """The image with these fractions of its pixels removed or shown, in this order: uint8 (fractions, size, size, 3)."""
    moved = order < (fractions * order.size)[:, None, None]
    if curve == "deletion":
        mean = np.round(image.mean(axis=(0, 1))).astype(np.uint8)
        return np.where(moved[..., None], mean, image)
    blurred = cv2.GaussianBlur(image, (0, 0), sigmaX=image.shape[0] / 10)
    return np.where(moved[..., None], image, blurred)
