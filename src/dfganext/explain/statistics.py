"""What a Grad-CAM map looks like, in numbers. All are computed on raw maps, before any rescaling."""

from __future__ import annotations

import numpy as np
import pandas as pd

NAMES = ("maximum", "mean", "entropy", "above_half")


def describe(maps: np.ndarray) -> pd.DataFrame:
    """One row a map.

    Args:
        maps: (N, h, w), zero or above.

    Returns:
        maximum and mean, in the map's own units; entropy of the map as a distribution over its cells, divided by log(h w), so
        that 1 is even and 0 a single cell; above_half, the share of cells above half the maximum. Both are NaN for a map
        that is zero everywhere, and entropy for one of a single cell.
    """
    cells = maps.reshape(len(maps), -1).astype(np.float64)
    total, top = cells.sum(axis=1), cells.max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = cells / total[:, None]
        entropy = -np.where(share > 0, share * np.log(share), 0).sum(axis=1) / np.log(cells.shape[1])
        above_half = (cells > top[:, None] / 2).mean(axis=1)
    blank = total == 0
    return pd.DataFrame(
        {
            "maximum": top,
            "mean": cells.mean(axis=1),
            "entropy": np.where(blank, np.nan, entropy),
            "above_half": np.where(blank, np.nan, above_half),
        }
    )


def class_means(table: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Mean of each statistic by the column `label`, over the maps that have it; None where none has."""
    means = table.groupby("label")[list(NAMES)].mean()
    return {
        str(label): {str(name): None if np.isnan(value) else float(value) for name, value in row.items()}
        for label, row in means.to_dict(orient="index").items()
    }
