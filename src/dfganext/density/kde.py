"""Exact Gaussian kernel density, by log-sum-exp over all squared distances.

scikit-learn's tree-based estimator is wrong by thousands of nats in high dimension at small bandwidth (its issues 7492,
25799, 27186), which is where latent vectors live. Here every point counts, in float64.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

TOLERANCE = 2e-7
"""Nats. Where the fast form of the distances could be off by more, they are summed up directly."""

BLOCK = 64 * 2**20
"""Bytes of working memory that a block of distances may take."""


def log_density(points: np.ndarray, queries: np.ndarray, bandwidth: float) -> np.ndarray:
    """Logarithm of a Gaussian kernel density estimate.

    log p(q) = logsumexp_i(-|q - x_i|^2 / 2h^2) - log n - (d/2) log(2 pi h^2)

    Squared distances come from one matrix product, |q|^2 - 2 q.x + |x|^2, of vectors centred on the points' mean. Its
    rounding error is bounded beforehand; where the bound exceeds TOLERANCE, distances are formed by subtraction instead.

    Args:
        points: (n, d), what the estimate is fitted to.
        queries: (q, d).
        bandwidth: standard deviation h of the kernel, in the units of the vectors.

    Returns:
        float64, (q,), in nats.

    Raises:
        ValueError: no points, shapes that do not agree, values that are not finite, or a bandwidth not above 0.
    """
    points, queries = np.asarray(points, np.float64), np.asarray(queries, np.float64)
    if points.ndim != 2 or queries.ndim != 2 or points.shape[1] != queries.shape[1]:
        raise ValueError(f"points (n, d) and queries (q, d) must share d, not {points.shape} and {queries.shape}")
    if not len(points):
        raise ValueError("a density needs at least one point")
    if not (np.isfinite(bandwidth) and bandwidth > 0):
        raise ValueError(f"bandwidth must be above 0, not {bandwidth}")
    if not (np.isfinite(points).all() and np.isfinite(queries).all()):
        raise ValueError("points and queries must be finite")

    count, dimension = points.shape
    centre = points.mean(axis=0)
    points, queries = points - centre, queries - centre
    point_norms = np.einsum("ij,ij->i", points, points)
    query_norms = np.einsum("ij,ij->i", queries, queries)
    scale = -0.5 / bandwidth**2
    constant = np.log(count) + 0.5 * dimension * np.log(2 * np.pi * bandwidth**2)

    result = np.empty(len(queries))
    rows = max(1, BLOCK // (8 * count))
    for start in range(0, len(queries), rows):
        block = slice(start, start + rows)
        reach = np.sqrt(point_norms.max(initial=0)) + np.sqrt(query_norms[block].max(initial=0))
        if _rounding_error(reach, dimension) * -scale <= TOLERANCE:
            squared = query_norms[block, None] - 2 * (queries[block] @ points.T) + point_norms
            np.maximum(squared, 0, out=squared)
        else:
            squared = _squared_distances(queries[block], points)
        result[block] = logsumexp(scale * squared, axis=1) - constant
    return result


def _rounding_error(reach: float, dimension: int) -> float:
    """How far off a squared distance from the matrix product can be, for vectors whose norms add up to `reach`.

    Rounding errors of a sum of d products grow like sqrt(d) (Higham & Mary 2019); 4 leaves room for the three terms.
    """
    return 4 * np.finfo(np.float64).eps * np.sqrt(dimension) * reach**2


def _squared_distances(queries: np.ndarray, points: np.ndarray) -> np.ndarray:
    squared = np.empty((len(queries), len(points)))
    rows = max(1, BLOCK // (8 * points.shape[1]))
    for row, query in enumerate(queries):
        for start in range(0, len(points), rows):
            difference = points[start : start + rows] - query
            squared[row, start : start + rows] = np.einsum("ij,ij->i", difference, difference)
    return squared
