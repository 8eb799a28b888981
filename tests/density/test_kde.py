"""Exact density against a sum without rounding error, and against scikit-learn where that is exact."""

import math
import tracemalloc

import numpy as np
import pytest
from sklearn.neighbors import KernelDensity

from dfganext.density import kde


def by_hand(points: np.ndarray, queries: np.ndarray, bandwidth: float) -> np.ndarray:
    """log-sum-exp one pair at a time, each squared distance summed without rounding error."""
    points, queries = points.astype(np.float64), queries.astype(np.float64)
    count, dimension = points.shape
    result = []
    for query in queries:
        terms = [-0.5 * math.fsum((query - point) ** 2) / bandwidth**2 for point in points]
        top = max(terms)
        total = math.log(math.fsum(math.exp(term - top) for term in terms))
        result.append(top + total - math.log(count) - dimension / 2 * math.log(2 * math.pi * bandwidth**2))
    return np.array(result)


def assert_exact(points: np.ndarray, queries: np.ndarray, bandwidth: float) -> None:
    found = kde.log_density(points, queries, bandwidth)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, by_hand(points, queries, bandwidth), rtol=1e-13, atol=1e-6)


@pytest.mark.parametrize("seed", range(60))
def test_any_shape_bandwidth_type_and_block(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    n, q, d = rng.integers(1, 40), rng.integers(1, 12), int(10 ** rng.uniform(0, 3))
    bandwidth = 10 ** rng.uniform(-4, 2)
    offset, scale = rng.normal() * 10 ** rng.uniform(0, 4), 10 ** rng.uniform(-2, 1)
    points, queries = (offset + scale * rng.normal(size=(rows, d)) for rows in (n, q))
    queries[: min(n, q) // 2] = points[: min(n, q) // 2]
    monkeypatch.setattr(kde, "BLOCK", 8 * d * int(rng.integers(1, 9)))
    precision = np.float32 if seed % 2 else np.float64
    assert_exact(points.astype(precision), queries.astype(precision), bandwidth)


@pytest.mark.parametrize(("n", "q"), [(1, 1), (3, 3), (4, 4), (5, 9), (8, 7), (9, 1), (12, 13)])
def test_block_borders(n, q, monkeypatch):
    """Blocks of four rows; blocks of queries, as wide as the number of points, have one to four rows."""
    rng = np.random.default_rng(n)
    monkeypatch.setattr(kde, "BLOCK", 8 * 6 * 4)
    assert_exact(rng.normal(size=(n, 6)), rng.normal(size=(q, 6)), 0.7)


@pytest.mark.parametrize("dimension", [1, 30, 1000])
@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_near_duplicates_at_a_small_bandwidth(dimension, precision, offset, monkeypatch):
    """Vectors millions of bandwidths long, some within a few bandwidths of each other: a product cannot resolve them."""
    rng = np.random.default_rng(5)
    monkeypatch.setattr(kde, "BLOCK", 8 * dimension * 3)
    bandwidth = 0.02
    groups = offset + rng.normal(size=(4, dimension)) * 1e5 / np.sqrt(dimension)
    near = lambda rows: bandwidth * rng.uniform(0, 4, size=(rows, 1)) * rng.normal(size=(rows, dimension))  # noqa: E731
    points = (groups[np.arange(24) % 4] + near(24) / np.sqrt(dimension)).astype(precision)
    points[5] = points[9] = points[1]
    queries = (groups[np.arange(10) % 4] + near(10) / np.sqrt(dimension)).astype(precision)
    queries[1], queries[2] = points[1], points[2]
    assert_exact(points, queries, bandwidth)
    monkeypatch.setattr(kde, "TOLERANCE", np.inf)
    with pytest.raises(AssertionError):
        assert_exact(points, queries, bandwidth)


def test_far_queries_for_which_every_point_matters():
    rng = np.random.default_rng(6)
    points = 0.01 * rng.normal(size=(30, 50))
    queries = 1e4 * np.eye(50)[:4]
    assert_exact(points, queries, 1.0)


@pytest.mark.parametrize(("tolerance", "few"), [(0.0, 1.0), (0.0, -1.0), (kde.TOLERANCE, kde.FEW), (np.inf, -1.0)])
def test_with_and_without_subtraction_and_float32(tolerance, few, monkeypatch):
    rng = np.random.default_rng(7)
    points, queries = rng.normal(size=(50, 20)), rng.normal(size=(33, 20))
    monkeypatch.setattr(kde, "TOLERANCE", tolerance)
    monkeypatch.setattr(kde, "FEW", few)
    assert_exact(points, queries, 0.3)


@pytest.mark.parametrize("bandwidth", [0.2, 50.0])
def test_latents_and_a_wide_kernel(bandwidth, monkeypatch):
    """At a small bandwidth few pairs matter, and the product is in float32; at a large one all do, and it is in float64."""
    rng = np.random.default_rng(3)
    points, queries = (rng.normal(0, 0.25, (rows, 4096)).astype(np.float32) for rows in (300, 6))
    kinds = []
    inner = kde._Distances.exponents

    def spy(self, some, norms, scale, precision):
        kinds.append(precision)
        return inner(self, some, norms, scale, precision)

    monkeypatch.setattr(kde._Distances, "exponents", spy)
    monkeypatch.setattr(kde, "FEW", 0.05)
    assert_exact(points, queries, bandwidth)
    assert kinds == ([np.float32] if bandwidth < 1 else [np.float32, np.float64])


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_a_query_that_is_a_lone_point_is_at_distance_zero(scale):
    rng = np.random.default_rng(8)
    points = (7 + scale * rng.normal(size=(40, 500))).astype(np.float32)
    lone = -math.log(40) - 250 * math.log(2 * math.pi * 0.2**2)
    np.testing.assert_allclose(kde.log_density(points, points, 0.2), lone, rtol=1e-14)


@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
def test_points_that_are_all_the_same(value):
    assert_exact(np.full((7, 30), value, np.float32), np.full((3, 30), value, np.float32), 0.2)


def test_the_papers_dimension():
    rng = np.random.default_rng(1)
    points, queries = (rng.random((rows, 16384), dtype=np.float32) for rows in (60, 5))
    queries[0] = points[3]
    assert_exact(points, queries, 0.2)
    assert_exact(10 * points, 10 * queries, 0.2)


def test_agrees_with_scikit_learn_where_that_is_exact():
    rng = np.random.default_rng(2)
    points, queries = rng.normal(size=(200, 6)), rng.normal(size=(50, 6))
    exact = KernelDensity(bandwidth=0.5, leaf_size=200).fit(points).score_samples(queries)
    np.testing.assert_allclose(kde.log_density(points, queries, 0.5), exact, atol=1e-9)


@pytest.mark.parametrize("scale", [0.1, 100])
def test_memory_does_not_grow_with_the_vectors(scale, monkeypatch):
    """32 MiB of float32 vectors; twice that in float64."""
    rng = np.random.default_rng(3)
    points = np.float32(scale) * rng.standard_normal((2048, 4096), dtype=np.float32)
    monkeypatch.setattr(kde, "BLOCK", 2**20)
    tracemalloc.start()
    kde.log_density(points, points[:100], 0.2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * kde.BLOCK


def test_no_queries():
    assert kde.log_density(np.zeros((2, 3)), np.zeros((0, 3)), 1.0).shape == (0,)


@pytest.mark.parametrize(
    ("points", "queries", "bandwidth", "says"),
    [
        (np.zeros((0, 3)), np.zeros((1, 3)), 1.0, "at least one point"),
        (np.zeros((2, 3)), np.zeros((1, 4)), 1.0, "must share d"),
        (np.zeros(3), np.zeros((1, 3)), 1.0, "must share d"),
        (np.zeros((2, 3)), np.zeros((1, 3)), 0.0, "above 0"),
        (np.zeros((2, 3)), np.zeros((1, 3)), np.nan, "above 0"),
        (np.zeros((2, 3)), np.zeros((1, 3)), 1e-200, "above 0"),
        (np.zeros((2, 3)), np.zeros((1, 3)), np.inf, "within float64"),
        (np.full((2, 3), np.nan), np.zeros((1, 3)), 1.0, "finite"),
        (np.zeros((2, 3)), np.array([[0, -np.inf, np.inf]]), 1.0, "finite"),
    ],
)
def test_bad_input(points, queries, bandwidth, says):
    with pytest.raises(ValueError, match=says):
        kde.log_density(points, queries, bandwidth)
