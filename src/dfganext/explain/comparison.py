"""Do the maps of fake images differ from those of real ones? Asked for each class that a map can be made for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from dfganext.evaluation import intervals
from dfganext.explain.statistics import NAMES
from dfganext.labels import FAKE, REAL
from dfganext.labels import NAMES as CLASSES

LEAST = 2
"""Maps of each class that a comparison needs."""
LEAST_PAIRS = 8
"""Images that a correlation needs."""


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """Set fake images' maps against real images', statistic by statistic.

    With two nearly opposite logits, an image's maps for the two classes are nearly complementary. So images are compared
    under the same target class, each of the two, and, as a reader of printed maps does, each under its own.

    Args:
        table: a row a map, with columns path, label and target ("real" or "fake": the image's class and the class mapped)
            and those of `statistics.describe`.

    Returns:
        A row a comparison ("target fake", "target real", "target own class") and statistic: fake and real (numbers of maps
        that have it), fake_median, real_median, cliffs_delta (P(fake > real) - P(fake < real)), low and high (95 %,
        bootstrap), p (Mann-Whitney, two-sided) and p_holm (Holm 1979, over the statistics of one comparison).
    """
    parts = {
        "target fake": table[table.target == CLASSES[FAKE]],
        "target real": table[table.target == CLASSES[REAL]],
        "target own class": table[table.target == table.label],
    }
    rows = []
    for comparison, part in parts.items():
        for name in (name for name in NAMES if name in table):
            fake, real = (
                part[part.label == label][name].dropna().to_numpy() for label in (CLASSES[FAKE], CLASSES[REAL])
            )
            rows.append({"comparison": comparison, "statistic": name, **_difference(fake, real)})
    found = pd.DataFrame(rows)
    found["p_holm"] = found.groupby("comparison").p.transform(lambda p: holm(p.to_numpy()))
    return found


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjustment of p values; NaN stay NaN and do not count."""
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return adjusted


def within_class_correlation(
    first: pd.Series, second: pd.Series, seed: int = 0, count: int = intervals.RESAMPLES
) -> dict[str, Any]:
    """Spearman's rho of two measurements of the same images, with a 95 % bootstrap interval over images.

    Pairs with a NaN are left out.

    Returns:
        spearman, low, high, all None where fewer than LEAST_PAIRS images are left or a measurement is constant; images.
    """
    pairs = np.stack([first.to_numpy(float), second.to_numpy(float)])
    x, y = pairs[:, ~np.isnan(pairs).any(axis=0)]
    unknown = {"spearman": None, "low": None, "high": None, "images": len(x)}
    if len(x) < LEAST_PAIRS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return unknown
    draws = np.random.default_rng(seed).integers(0, len(x), (count, len(x)))
    ranks = [stats.rankdata(values[draws], axis=1) for values in (x, y)]
    centred = [one - one.mean(axis=1, keepdims=True) for one in ranks]
    with np.errstate(invalid="ignore"):  # a draw may hold one image only
        rho = np.sum(centred[0] * centred[1], axis=1) / np.sqrt(
            np.prod([np.sum(one**2, axis=1) for one in centred], axis=0)
        )
    low, high = intervals.percentile(rho)
    return {"spearman": float(stats.spearmanr(x, y).statistic), "low": low, "high": high, "images": len(x)}


def _difference(fake: np.ndarray, real: np.ndarray) -> dict[str, float]:
    found = {"fake": len(fake), "real": len(real)}
    if min(found.values()) < LEAST:
        return found | dict.fromkeys(("fake_median", "real_median", "cliffs_delta", "low", "high", "p"), np.nan)
    labels, values = np.repeat([FAKE, REAL], [len(fake), len(real)]), np.concatenate([fake, real])
    low, high = intervals.roc_auc(labels, values)
    test = stats.mannwhitneyu(fake, real)
    return found | {
        "fake_median": float(np.median(fake)),
        "real_median": float(np.median(real)),
        "cliffs_delta": 2 * float(test.statistic) / (len(fake) * len(real)) - 1,
        "low": 2 * low - 1,
        "high": 2 * high - 1,
        "p": float(test.pvalue),
    }
