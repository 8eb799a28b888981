"""How sure a figure is: Wilson intervals of proportions, a stratified bootstrap of the rest, exact McNemar tests.

A bootstrap resample is a row of weights: how often each image was drawn. Every figure of merit is computed from the weights
of all resamples at once, and two models are compared on the same resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import stats

from dfganext.evaluation import metrics

CONFIDENCE = 0.95
RESAMPLES = 2000
BLOCK = 2**20
"""Weights held at a time: some 64 MB with all that is computed from them."""

Interval = list[float]
"""[low, high]"""


def wilson(successes: float, trials: int) -> Interval:
    """95 % interval of a proportion (Wilson 1927), in 0...1. ValueError without trials."""
    if trials < 1:
        raise ValueError("a proportion needs at least one trial")
    z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return [max(0.0, float(centre - half)), min(1.0, float(centre + half))]


def resamples(labels: np.ndarray, count: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Stratified bootstrap: (count, n) weights, in each row as many draws of each class as it has images."""
    rng = np.random.default_rng([seed, len(labels)])
    weights = np.zeros((count, len(labels)))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=count)
    return weights


def percentile(values: np.ndarray) -> Interval:
    """The middle 95 % of bootstrap values, those that are not finite left out."""
    tail = 50 * (1 - CONFIDENCE)
    return [float(edge) for edge in np.percentile(values[np.isfinite(values)], [tail, 100 - tail])]


def bootstrap(
    labels: np.ndarray,
    figures: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    count: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """95 % intervals of figures of merit.

    Args:
        labels: (n,) classes, by which the draws are stratified.
        figures: from weights (b, n) to {name: (b,)}, such as a partial of `metrics.ranking_weighted`.
        count: resamples.

    Returns:
        {name: [low, high]}.
    """
    return {name: percentile(values) for name, values in _values(labels, figures, count, seed).items()}


def roc_auc(labels: np.ndarray, scores: np.ndarray, count: int = RESAMPLES, seed: int = 0) -> Interval:
    """95 % bootstrap interval of the ROC-AUC."""
    ranked = bootstrap(labels, lambda weights: metrics.ranking_weighted(labels, scores, weights), count, seed)
    return ranked["roc_auc"]


def mean(values: np.ndarray, count: int = RESAMPLES, seed: int = 0) -> Interval:
    """95 % bootstrap interval of a mean."""
    one_class = np.zeros(len(values), int)
    return bootstrap(one_class, lambda weights: {"mean": weights @ values / len(values)}, count, seed)["mean"]


def difference(
    labels: np.ndarray,
    first: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    second: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    count: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """95 % intervals of first - second, both computed on the same resamples of the same images (paired)."""

    def gap(weights: np.ndarray) -> dict[str, np.ndarray]:
        ours, theirs = first(weights), second(weights)
        return {name: ours[name] - theirs[name] for name in ours}

    return bootstrap(labels, gap, count, seed)


def accuracy_difference(
    labels: np.ndarray, first_right: np.ndarray, second_right: np.ndarray, count: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Accuracy of one model less another's on the same images, and its paired bootstrap interval.

    Args:
        first_right, second_right: bool, (n,): whether each model judged each image rightly.

    Returns:
        difference, interval.
    """
    gain = first_right.astype(float) - second_right
    found = bootstrap(labels, lambda weights: {"gain": weights @ gain / len(gain)}, count, seed)
    return {"difference": float(gain.mean()), "interval": found["gain"]}


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> dict[str, float | int]:
    """Exact McNemar test of two models on the same images.

    Args:
        first_right, second_right: bool, (n,): whether each model judged each image rightly.

    Returns:
        only_first and only_second, the images that one alone judged rightly; p, two-sided, 1 where there are none.
    """
    only_first = int(np.sum(first_right & ~second_right))
    only_second = int(np.sum(second_right & ~first_right))
    discordant = only_first + only_second
    p = stats.binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": float(p)}


def _values(
    labels: np.ndarray, figures: Callable[[np.ndarray], Mapping[str, np.ndarray]], count: int, seed: int
) -> dict[str, np.ndarray]:
    """Figures of all resamples, a block in memory at a time."""
    rows = max(1, BLOCK // max(1, len(labels)))
    parts = [
        figures(resamples(labels, min(rows, count - start), seed + 7919 * start)) for start in range(0, count, rows)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
