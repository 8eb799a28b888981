"""Statistics of raw Grad-CAM maps."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dfganext.settings import Face

NAMES = ("maximum", "mean", "entropy", "effective_area", "above_half", "gini", "face_mass")

LINES = 256
"""Sampling lines per row of cells for the ellipse's share of each cell: exact to about 1e-4."""
AREA_ROWS = 64
"""Rows of cells for the ellipse's share of the whole image: exact to about 1e-6."""


def area_of(face: Face) -> float:
    """Share of the image inside the face ellipse, which is also the face_mass of an even map."""
    return float(face_weights(AREA_ROWS, 1, face).mean())


def describe(maps: np.ndarray, face: Face) -> pd.DataFrame:
    """Statistics of each map, one row per map.

    Args:
        maps: (N, h, w), zero or above.
        face: ellipse for face_mass; 0.5, 0.5, 1, 1 touches all four edges.

    Returns:
        maximum and mean: intensity, in the map's units.
        entropy: of the map as a distribution over its cells, divided by log(h w): 1 for an even map, 0 for a single cell.
        effective_area: exp(entropy in nats) / number of cells, 0...1.
        above_half: share of cells above half the maximum.
        gini: Gini coefficient of the cells: 0 for an even map, near 1 for a single cell.
        face_mass: share of the map's sum inside the face ellipse.

        All but maximum and mean are NaN for a map that is zero everywhere; entropy also for a map of one cell.
    """
    cells = maps.reshape(len(maps), -1).astype(np.float64)
    count = cells.shape[1]
    total, top = cells.sum(axis=1), cells.max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = cells / total[:, None]
        entropy = -np.sum(np.where(share > 0, share * np.log(share), 0), axis=1)  # nats
        statistics = {
            "entropy": entropy / np.log(count),
            "effective_area": np.exp(entropy) / count,
            "above_half": (cells > top[:, None] / 2).mean(axis=1),
            "gini": np.sort(share, axis=1) @ (2 * np.arange(1, count + 1) - count - 1) / count,
            "face_mass": share @ face_weights(maps.shape[1], maps.shape[2], face).ravel(),
        }
    blank = total == 0
    return pd.DataFrame(
        {
            "maximum": top,
            "mean": cells.mean(axis=1),
            **{name: np.where(blank, np.nan, values) for name, values in statistics.items()},
        }
    )


def face_weights(rows: int, columns: int, face: Face) -> np.ndarray:
    """Share of each cell's area inside the ellipse, 0...1: (rows, columns)."""
    y = (np.arange(rows * LINES) + 0.5) / (rows * LINES)
    half = face.width / 2 * np.sqrt(np.clip(1 - ((y - face.y) / (face.height / 2)) ** 2, 0, None))
    edges = np.arange(columns + 1) / columns
    low, high = np.maximum(edges[:-1], (face.x - half)[:, None]), np.minimum(edges[1:], (face.x + half)[:, None])
    inside = np.clip(high - low, 0, None) * columns
    return inside.reshape(rows, LINES, columns).mean(axis=1)


def means(table: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """Mean of each statistic without NaN, None where all are NaN: {target: {label: {statistic: mean}}}."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for (target, label), rows in table.groupby(["target", "label"]):
        row = {name: None if rows[name].isna().all() else float(rows[name].mean()) for name in NAMES}
        found.setdefault(str(target), {})[str(label)] = row
    return found
