"""Stratified bootstrap of near-duplicate groups. scipy.stats.bootstrap resamples images, not whole groups within strata."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

RESAMPLES = 2000
BLOCK = 2**20
"""Weights in memory at a time: about 64 MB with everything that is computed from them."""

Statistics = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""From weights (b, n), how often each resample holds each image, to {name: (b,)}."""


def resamples(
    labels: np.ndarray, groups: np.ndarray | None = None, count: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Weights (count, n): how often each resample holds each image.

    Whole groups are drawn, as many as there are, within strata: groups with the same classes. So every class keeps weight; where
    groups differ in size, the number of images drawn varies.

    Args:
        labels: (n,), the class of each image.
        groups: (n,), the near-duplicate group of each image; None: each image is a group of its own.
    """
    _, number = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)
    classes, label = np.unique(labels, return_inverse=True)
    held = np.zeros((number.max() + 1, len(classes)), bool)
    held[number, label] = True
    _, stratum = np.unique(held, axis=0, return_inverse=True)
    rng = np.random.default_rng([seed, len(labels)])
    drawn = np.zeros((count, len(held)))
    for one in range(stratum.max() + 1):
        members = np.flatnonzero(stratum == one)
        drawn[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=count)
    return drawn[:, number]


def distribution(
    labels: np.ndarray, statistics: Statistics, groups: np.ndarray | None = None, count: int = RESAMPLES
) -> dict[str, np.ndarray]:
    """The statistics of all resamples, computed block by block: {name: (count,)}. Arguments as for `resamples`."""
    rows = max(1, BLOCK // max(1, len(labels)))
    parts = [
        statistics(resamples(labels, groups, min(rows, count - start), 7919 * start)) for start in range(0, count, rows)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def percentiles(values: np.ndarray) -> list[float]:
    """The interval that holds the middle 95 % of a statistic's finite values in `distribution`.

    Not for a statistic at the edge of its range: there all resamples are equal and the interval has no width.
    """
    return np.percentile(values[np.isfinite(values)], [2.5, 97.5]).tolist()
