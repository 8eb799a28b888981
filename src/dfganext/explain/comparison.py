"""Do the maps of fake images differ from those of real images? Compared separately for each target class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from dfganext.evaluation import bootstrap, intervals
from dfganext.explain.statistics import NAMES
from dfganext.labels import FAKE, REAL
from dfganext.labels import NAMES as CLASSES

MIN_MAPS = 2
"""Maps of each class that a comparison needs."""
MIN_PAIRS = 8
"""Images that a correlation needs."""


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """Compare each statistic between the maps of fake and of real images.

    An image's maps for the two classes are nearly complementary, because the two logits are nearly opposite. Images are therefore
    compared for the same target class, for each of the two; and each for its own class, as printed maps usually show.

    Args:
        table: one row per map: path, label and target ("real" or "fake": the image's class and the class that the map explains),
            group (of near duplicates) and the columns of `statistics.describe`.

    Returns:
        One row per comparison and statistic: fake and real (numbers of maps with the statistic), fake_median, real_median,
        cliffs_delta (P(fake > real) - P(fake < real)), low and high (95 %, `intervals.roc_auc`), p (Mann-Whitney, two-sided) and
        p_holm (Holm 1979, over the statistics of one comparison).
    """
    parts = {
        "target fake": table[table.target == CLASSES[FAKE]],
        "target real": table[table.target == CLASSES[REAL]],
        "target own class": table[table.target == table.label],
    }
    rows = []
    for comparison, part in parts.items():
        for name in NAMES:
            rows.append({"comparison": comparison, "statistic": name, **_difference(part.dropna(subset=[name]), name)})
    found = pd.DataFrame(rows)
    found["p_holm"] = found.groupby("comparison").p.transform(lambda p: holm(p.to_numpy()))
    return found


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjustment of p values; NaN stays NaN and does not count as a test."""
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return adjusted


def within_class_correlation(first: pd.Series, second: pd.Series, groups: pd.Series | None = None) -> dict[str, Any]:
    """Spearman's rho of two measurements of the same images, with a 95 % interval.

    The interval is the union of a bootstrap of near-duplicate groups and of Bonett and Wright's (2000), which always has a width.
    Pairs with a NaN are left out.

    Returns:
        spearman, low, high: None where fewer than MIN_PAIRS images are left or a measurement is constant. images: their number.
    """
    known = (first.notna() & second.notna()).to_numpy()
    x, y = first.to_numpy(float)[known], second.to_numpy(float)[known]
    group = np.arange(len(x)) if groups is None else groups.to_numpy()[known]
    if len(x) < MIN_PAIRS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"spearman": None, "low": None, "high": None, "images": len(x)}
    rho = float(stats.spearmanr(x, y).statistic)
    one_class = np.zeros(len(x), int)
    rhos = bootstrap.distribution(one_class, lambda weights: {"rho": _weighted_spearman(x, y, weights)}, group)["rho"]
    drawn = bootstrap.percentiles(rhos)
    independent = len(x) ** 2 / np.sum(np.unique(group, return_counts=True)[1] ** 2)  # Kish's effective number
    half = intervals.Z * np.sqrt((1 + rho**2 / 2) / max(1.0, independent - 3))
    middle = np.arctanh(np.clip(rho, 1 / independent - 1, 1 - 1 / independent))
    low, high = min(drawn[0], np.tanh(middle - half)), max(drawn[1], np.tanh(middle + half))
    return {"spearman": rho, "low": float(low), "high": float(high), "images": len(x)}


def _weighted_spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's rho (b,) of images weighted by (b, n); NaN where only one value has weight."""
    centred = []
    for values in (x, y):
        distinct, number = np.unique(values, return_inverse=True)
        counts = np.zeros((len(weights), len(distinct)))
        for at, column in zip(number, weights.T, strict=True):
            counts[:, at] += column
        ranks = (np.cumsum(counts, axis=1) - counts / 2)[:, number]  # midranks minus one half
        centred.append(ranks - np.average(ranks, axis=1, weights=weights)[:, None])
    products = [np.sum(weights * centred[a] * centred[b], axis=1) for a, b in ((0, 1), (0, 0), (1, 1))]
    with np.errstate(invalid="ignore"):
        return products[0] / np.sqrt(products[1] * products[2])


def _difference(maps: pd.DataFrame, statistic: str) -> dict[str, float]:
    labels, values = (maps.label == CLASSES[FAKE]).to_numpy(int), maps[statistic].to_numpy(float)
    fake, real = values[labels == FAKE], values[labels == REAL]
    found = {"fake": len(fake), "real": len(real)}
    if min(len(fake), len(real)) < MIN_MAPS:
        return found | dict.fromkeys(("fake_median", "real_median", "cliffs_delta", "low", "high", "p"), np.nan)
    low, high = intervals.roc_auc(labels, values, maps.group.to_numpy())
    test = stats.mannwhitneyu(fake, real)
    return found | {
        "fake_median": float(np.median(fake)),
        "real_median": float(np.median(real)),
        "cliffs_delta": 2 * float(test.statistic) / (len(fake) * len(real)) - 1,
        "low": 2 * low - 1,
        "high": 2 * high - 1,
        "p": float(test.pvalue),
    }
