"""Exact Gaussian kernel density, by log-sum-exp over all squared distances.

scikit-learn's tree-based estimator is wrong by thousands of nats for vectors of high dimension at a small bandwidth (its
issues 7492, 25799, 27186), which is the case of latent vectors. Here every point counts, in float64.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.special import logsumexp

TOLERANCE = 2e-7
"""Nats. Where distances from a matrix product could be off by more, those that matter are computed by subtraction."""
MARGIN = 45.0
"""Terms this many nats below the largest do not matter: even 10^9 of them add up to 10^9 e^-45 = 3e-11 nats."""
BLOCK = 128 * 2**20
"""Bytes of a block of float64 vectors or distances. A few blocks are in memory at a time."""
CACHED = 128
"""A thread works on 1/128 of a block at a time, 1 MiB, which fits a processor's cache."""
FEW = 0.03
"""Largest share of pairs to recompute after a product in float32; with more, a product in float64 is faster."""


def log_density(points: np.ndarray, queries: np.ndarray, bandwidth: float) -> np.ndarray:
    """Logarithm of a Gaussian kernel density estimate.

    log p(q) = logsumexp_i(-|q - x_i|^2 / 2h^2) - log n - (d/2) log(2 pi h^2)

    Squared distances come from a matrix product of centred vectors, |q|^2 - 2 q.x + |x|^2, in float32 where few pairs matter, as
    with latents and a small bandwidth. Distances that matter and that the product may get wrong by more than TOLERANCE are
    computed by subtraction, in float64. Besides its arguments, a call holds a few times BLOCK bytes.

    Args:
        points: (n, d), the points that the estimate is fitted to, of any real type.
        queries: (q, d).
        bandwidth: standard deviation h of the kernel, in the units of the vectors.

    Returns:
        float64, (q,), in nats.

    Raises:
        ValueError: no points, mismatched shapes, values that are not finite, or a bandwidth that is not above 0 or whose
            square is beyond float64.
    """
    points, queries = np.asarray(points), np.asarray(queries)
    if points.ndim != 2 or queries.ndim != 2 or points.shape[1] != queries.shape[1]:
        raise ValueError(f"points (n, d) and queries (q, d) must share d, not {points.shape} and {queries.shape}")
    if not len(points):
        raise ValueError("a density needs at least one point")
    if not 1e-150 < bandwidth < 1e150:
        raise ValueError(f"bandwidth must be above 0, and its square within float64, not {bandwidth}")

    count, dimension = points.shape
    scale = -0.5 / bandwidth**2
    constant = np.log(count) + 0.5 * dimension * np.log(2 * np.pi * bandwidth**2)
    result = np.empty(len(queries))
    with np.errstate(over="ignore", invalid="ignore"), ThreadPoolExecutor(os.cpu_count()) as threads:
        distances = _Distances(points, threads)
        norms = distances.norms_of(queries)
        if not (np.isfinite(distances.norms).all() and np.isfinite(norms).all()):
            raise ValueError("points and queries must be finite, and their squares within float64")
        precision: type[np.floating] = np.float32 if distances.reach(norms).max(initial=0) < 1e15 else np.float64
        for block in _blocks(len(queries), max(count, dimension)):
            some = queries[block]
            exponents, pairs = distances.exponents(some, norms[block], scale, precision)
            if precision is np.float32 and len(pairs[0]) > FEW * exponents.size:
                precision = np.float64
                exponents, pairs = distances.exponents(some, norms[block], scale, precision)
            exponents[pairs] = scale * distances.exactly(some, *pairs)
            parts = (exponents[rows] for rows in _blocks(len(exponents), CACHED * count))
            sums = threads.map(lambda part: logsumexp(part, axis=1), parts)
            result[block] = np.concatenate([np.empty(0), *sums]) - constant
    return result


class _Distances:
    """Squared distances to points, from matrix products. Vectors are centred on the mean of about 256 points: smaller products
    have smaller rounding errors."""

    def __init__(self, points: np.ndarray, threads: ThreadPoolExecutor) -> None:
        self.points, self.threads = points, threads
        self.centre = points[:: 1 + len(points) // 256].mean(axis=0, dtype=np.float64)
        self.norms = self.norms_of(points)

    def norms_of(self, vectors: np.ndarray) -> np.ndarray:
        """Squared norms of vectors (n, d) minus the centre: float64 (n,)."""
        slices = list(_blocks(len(vectors), CACHED * vectors.shape[1]))

        def squared(rows: slice) -> np.ndarray:
            centred = np.subtract(vectors[rows], self.centre, dtype=np.float64)
            return np.einsum("ij,ij->i", centred, centred)

        return np.concatenate([np.empty(0), *self.threads.map(squared, slices)])

    def reach(self, norms: np.ndarray) -> np.ndarray:
        """The largest possible sum of the norms of a query and of a point, (q,)."""
        return np.sqrt(norms) + np.sqrt(self.norms.max())

    def exponents(
        self, queries: np.ndarray, norms: np.ndarray, scale: float, precision: type[np.floating]
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """scale x squared distance, float64 (q, n), and the pairs (two arrays of indices) for which it is not exact enough."""
        dimension = queries.shape[1]
        centred = self._centred(queries, np.empty(queries.shape, precision))
        squared = np.empty((len(queries), len(self.points)))
        buffer = np.empty((min(len(self.points), _rows(dimension)), dimension), precision)
        for rows in _blocks(len(self.points), dimension):
            some = self.points[rows]
            squared[:, rows] = centred @ self._centred(some, buffer[: len(some)]).T
        squared *= -2
        squared += norms[:, None]
        squared += self.norms
        error = _rounding_error(self.reach(norms), dimension, precision)
        squared[squared <= error[:, None]] = 0  # no distance is then off by more than twice the error
        exponents = np.multiply(squared, scale, out=squared)
        return exponents, np.nonzero(_matters(exponents, -scale * 2 * error))

    def exactly(self, queries: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """|queries[left[k]] - points[right[k]]|^2, float64 (k,), by subtraction; exactly 0 for equal vectors."""
        squared = np.empty(len(left))

        def subtract(some: slice) -> None:
            difference = np.subtract(queries[left[some]], self.points[right[some]], dtype=np.float64)
            # numpy sums rows pairwise: the error is that of log d roundings, not of d
            squared[some] = np.square(difference, out=difference).sum(axis=1)

        list(self.threads.map(subtract, _blocks(len(left), CACHED * queries.shape[1])))
        return squared

    def _centred(self, vectors: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Write vectors minus the centre into target, in its type."""

        def subtract(rows: slice) -> None:
            np.subtract(vectors[rows], self.centre, out=target[rows], dtype=np.float64, casting="same_kind")

        list(self.threads.map(subtract, _blocks(len(vectors), CACHED * vectors.shape[1])))
        return target


def _rounding_error(reach: np.ndarray, dimension: int, precision: type[np.floating]) -> np.ndarray:
    """Bound of the rounding error of a squared distance from the matrix product, for vectors whose norms sum to `reach`.

    With the unit roundoff u, the sums of d products are off by at most d u reach^2 (Higham 2002, section 3.1); the other roundings
    add 4 u reach^2. The 8 is larger than needed.
    """
    return (dimension + 8) * np.finfo(precision).eps / 2 * reach**2


def _matters(exponents: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Which exponents (q, n), known to within the bound of their query (q,), must be recomputed exactly.

    An exponent more than 2 bound + MARGIN below the largest known one is truly more than MARGIN below the true largest: it does
    not change the sum. Log-sum-exp is off by no more than the worst of its exponents, so a bound within TOLERANCE is enough.
    """
    least = np.where(bound > TOLERANCE, exponents.max(axis=1) - 2 * bound - MARGIN, np.inf)
    return exponents >= least[:, None]


def _rows(width: int) -> int:
    """Number of float64 rows of this width that fill a block."""
    return max(1, BLOCK // (8 * max(1, width)))


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of rows, each of at most BLOCK bytes of float64 at this width."""
    step = _rows(width)
    return (slice(start, start + step) for start in range(0, rows, step))
