"""What a Grad-CAM map looks like, in numbers. All are computed on raw maps, before any rescaling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

NAMES = ("maximum", "mean", "entropy", "effective_area", "above_half", "gini", "face_mass")

LINES = 256
"""Lines across each row of cells on which the ellipse is measured; its share of a cell is then exact to about 1e-4."""
AREA_ROWS = 64
"""Rows of cells by which the ellipse's share of the whole image is measured: exact to about 1e-6."""


@dataclass(frozen=True)
class Ellipse:
    """Where the face is: centre and full axes as shares of the image, so that 0.5, 0.5, 1, 1 touches all four edges."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        """Share of the image that lies inside: what an even map has of its sum there."""
        return float(face_weights(AREA_ROWS, 1, self).mean())


def describe(maps: np.ndarray, face: Ellipse | None = None) -> pd.DataFrame:
    """One row a map.

    Args:
        maps: (N, h, w), zero or above.
        face: ellipse in which face_mass is counted; without it that column is missing.

    Returns:
        maximum and mean: intensity, in the map's own units.
        entropy: of the map as a distribution over its cells, divided by log(h w): 1 is even, 0 a single cell.
        effective_area: exp of that entropy in nats over the number of cells, 0...1.
        above_half: share of cells above half the maximum.
        gini: of the cells; 0 is even, near 1 a single cell.
        face_mass: share of the map's sum that lies inside the face.

        All but the first two are NaN for a map that is zero everywhere; entropy is, too, for one of a single cell.
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
        }
        if face is not None:
            statistics["face_mass"] = share @ face_weights(maps.shape[1], maps.shape[2], face).ravel()
    blank = total == 0
    return pd.DataFrame(
        {
            "maximum": top,
            "mean": cells.mean(axis=1),
            **{name: np.where(blank, np.nan, values) for name, values in statistics.items()},
        }
    )


def face_weights(rows: int, columns: int, face: Ellipse) -> np.ndarray:
    """Share of each cell's area, 0...1, that lies inside the ellipse: (rows, columns)."""
    y = (np.arange(rows * LINES) + 0.5) / (rows * LINES)
    half = face.width / 2 * np.sqrt(np.clip(1 - ((y - face.y) / (face.height / 2)) ** 2, 0, None))
    edges = np.arange(columns + 1) / columns
    low, high = np.maximum(edges[:-1], (face.x - half)[:, None]), np.minimum(edges[1:], (face.x + half)[:, None])
    inside = np.clip(high - low, 0, None) * columns
    return inside.reshape(rows, LINES, columns).mean(axis=1)


def means(table: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """Mean of each statistic by the columns `target` and `label`, over the maps that have it; None where none has.

    Returns:
        {target: {label: {statistic: mean}}}.
    """
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    names = [name for name in NAMES if name in table]
    for (target, label), rows in table.groupby(["target", "label"]):
        averages = rows[names].mean()
        row = {name: None if np.isnan(averages[name]) else float(averages[name]) for name in names}
        found.setdefault(str(target), {})[str(label)] = row
    return found
