"""Exact Gaussian kernel density, by log-sum-exp over all squared distances.

scikit-learn's tree-based estimator is wrong by thousands of nats in high dimension at small bandwidth (its issues 7492,
25799, 27186), which is where latent vectors live. Here every point counts, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import logsumexp

TOLERANCE = 2e-7
"""Nats. Where the fast form of the distances could be off by more, those that matter are formed by subtraction."""

MARGIN = 45.0
"""Nats below the largest term at which a term matters no more: even 10^9 of them add up to 10^9 e^-45 = 3e-11 nats."""

BLOCK = 128 * 2**20
"""Bytes of a block: of float64 vectors, or of distances. A handful of them are held at a time."""


def log_density(points: np.ndarray, queries: np.ndarray, bandwidth: float) -> np.ndarray:
    """Logarithm of a Gaussian kernel density estimate.

    log p(q) = logsumexp_i(-|q - x_i|^2 / 2h^2) - log n - (d/2) log(2 pi h^2)

    Squared distances come from a matrix product, |q|^2 - 2 q.x + |x|^2, of vectors centred on the points' mean. Its
    rounding error is bounded for each query; where the bound exceeds TOLERANCE, the distances that the result depends on
    are formed by subtraction instead. Equal vectors are at a distance of exactly 0 either way. Vectors become float64 block
    by block: beside its arguments, a call holds a few times BLOCK bytes.

    Args:
        points: (n, d), what the estimate is fitted to, of any real type.
        queries: (q, d).
        bandwidth: standard deviation h of the kernel, in the units of the vectors.

    Returns:
        float64, (q,), in nats.

    Raises:
        ValueError: no points, shapes that do not agree, values that are not finite, or a bandwidth that is not above 0 or
            whose square is beyond float64.
    """
    points, queries = np.asarray(points), np.asarray(queries)
    if points.ndim != 2 or queries.ndim != 2 or points.shape[1] != queries.shape[1]:
        raise ValueError(f"points (n, d) and queries (q, d) must share d, not {points.shape} and {queries.shape}")
    if not len(points):
        raise ValueError("a density needs at least one point")
    if not 1e-150 < bandwidth < 1e150:
        raise ValueError(f"bandwidth must be above 0, and its square within float64, not {bandwidth}")
    if not all(np.isfinite([values.min(initial=0), values.max(initial=0)]).all() for values in (points, queries)):
        raise ValueError("points and queries must be finite")

    count, dimension = points.shape
    centre = points.mean(axis=0, dtype=np.float64)
    point_norms = np.concatenate([_norms(_centred(points[rows], centre)) for rows in _blocks(count, dimension)])
    scale = -0.5 / bandwidth**2
    constant = np.log(count) + 0.5 * dimension * np.log(2 * np.pi * bandwidth**2)

    result = np.empty(len(queries))
    for block in _blocks(len(queries), max(count, dimension)):
        centred = _centred(queries[block], centre)
        query_norms = _norms(centred)
        squared = np.empty((len(centred), count))
        for rows in _blocks(count, dimension):
            product = centred @ _centred(points[rows], centre).T
            squared[:, rows] = query_norms[:, None] - 2 * product + point_norms[rows]
        error = _rounding_error(np.sqrt(query_norms) + np.sqrt(point_norms.max()), dimension)
        squared[squared <= error[:, None]] = 0  # it may be, and then no distance is off by more than twice the error
        exponents = np.multiply(squared, scale, out=squared)
        pairs = np.nonzero(_matters(exponents, -scale * 2 * error))
        exponents[pairs] = scale * _squared_distances(queries[block], points, *pairs)
        result[block] = logsumexp(exponents, axis=1) - constant
    return result


def _rounding_error(reach: np.ndarray, dimension: int) -> np.ndarray:
    """How far off a squared distance from the matrix product can be, for vectors whose norms add up to `reach`.

    With the unit roundoff u, three sums of d products are off by at most d u reach^2 together, in whatever order they are
    added up (Higham 2002, section 3.1); centring and adding the three are off by 2 u reach^2 each. 8 leaves room.
    """
    return (dimension + 8) * np.finfo(np.float64).eps / 2 * reach**2


def _matters(exponents: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Which exponents (q, n), each known to within its query's bound (q,), must be exact for the sum to be.

    One more than 2 bound + MARGIN below the largest known is truly more than MARGIN below the true largest, and the inexact
    value that it keeps is too. So such terms change neither the true sum nor ours, and all others are formed anew. A bound
    within TOLERANCE needs nothing: a logarithm of a sum is off by no more than the worst of its exponents.
    """
    least = np.where(bound > TOLERANCE, exponents.max(axis=1) - 2 * bound - MARGIN, np.inf)
    return exponents >= least[:, None]


def _squared_distances(queries: np.ndarray, points: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """|queries[left[k]] - points[right[k]]|^2, (k,); exactly 0 for equal vectors."""
    squared = np.empty(len(left))
    for some in _blocks(len(left), points.shape[1]):
        difference = np.subtract(queries[left[some]], points[right[some]], dtype=np.float64)
        # A sum along rows is pairwise: its error is that of log d roundings, not of d.
        squared[some] = np.square(difference, out=difference).sum(axis=1)
    return squared


def _centred(vectors: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return np.subtract(vectors, centre, dtype=np.float64)


def _norms(vectors: np.ndarray) -> np.ndarray:
    """Squared."""
    return np.einsum("ij,ij->i", vectors, vectors)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of rows, each of no more than BLOCK bytes of float64 at this width."""
    step = max(1, BLOCK // (8 * max(1, width)))
    return (slice(start, start + step) for start in range(0, rows, step))
