"""Exact density against a sum written out with a hundred digits, scikit-learn's exact setting, and a closed form."""

import math

import numpy as np
import pytest
from sklearn.neighbors import KernelDensity

from dfganext.density import kde, protocols


def by_hand(points: np.ndarray, queries: np.ndarray, bandwidth: float) -> np.ndarray:
    """log-sum-exp one pair at a time, each squared distance summed without rounding error."""
    count, dimension = points.shape
    result = []
    for query in queries:
        terms = [-0.5 * math.fsum((query - point) ** 2) / bandwidth**2 for point in points]
        top = max(terms)
        total = math.log(math.fsum(math.exp(term - top) for term in terms))
        result.append(top + total - math.log(count) - dimension / 2 * math.log(2 * math.pi * bandwidth**2))
    return np.array(result)


@pytest.mark.parametrize("seed", range(30))
def test_any_shape_and_bandwidth(seed):
    rng = np.random.default_rng(seed)
    n, q, d = rng.integers(1, 40), rng.integers(1, 12), int(10 ** rng.uniform(0, 3))
    bandwidth = 10 ** rng.uniform(-4, 2)
    offset, scale = rng.normal() * 10 ** rng.uniform(0, 4), 10 ** rng.uniform(-2, 1)
    points, queries = (offset + scale * rng.normal(size=(rows, d)) for rows in (n, q))
    queries[: min(n, q) // 2] = points[: min(n, q) // 2]
    np.testing.assert_allclose(
        kde.log_density(points, queries, bandwidth), by_hand(points, queries, bandwidth), rtol=1e-11, atol=1e-6
    )


def test_the_papers_dimension():
    rng = np.random.default_rng(1)
    points, queries = rng.random((60, 16384)), rng.random((5, 16384))
    queries[0] = points[3]
    found = kde.log_density(points.astype(np.float32), queries.astype(np.float32), 0.2)
    expected = by_hand(points.astype(np.float32).astype(float), queries.astype(np.float32).astype(float), 0.2)
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


def test_agrees_with_scikit_learn_where_that_is_exact():
    rng = np.random.default_rng(2)
    points, queries = rng.normal(size=(200, 6)), rng.normal(size=(50, 6))
    exact = KernelDensity(bandwidth=0.5, leaf_size=200).fit(points).score_samples(queries)
    np.testing.assert_allclose(kde.log_density(points, queries, 0.5), exact, atol=1e-9)


def test_blocks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(3)
    points, queries = rng.normal(size=(50, 20)), rng.normal(size=(33, 20))
    whole = kde.log_density(points, queries, 0.3)
    monkeypatch.setattr(kde, "BLOCK", 8 * 50 * 4)
    np.testing.assert_allclose(kde.log_density(points, queries, 0.3), whole, rtol=1e-13)


def test_a_lone_point_has_the_papers_constant():
    """d = 16384, h = 0.2, n = 10000 give the figure of the paper's Table II for real images, whatever the images."""
    scores = protocols.score(np.zeros((1, 4)), np.ones((1, 4)), np.ones((1, 4)), 0.2)
    summary = protocols.summarise(scores, points=10000, dimension=16384, bandwidth=0.2)
    assert summary["paper"]["lone_point"] == pytest.approx(11303.931489, abs=1e-6)


def test_protocols_score_what_they_say():
    rng = np.random.default_rng(4)
    train, real, fake = rng.normal(size=(30, 5)), rng.normal(size=(9, 5)), rng.normal(size=(7, 5)) + 3
    scores = protocols.score(train, real, fake, 0.5)
    of = lambda protocol, label: scores[(scores.protocol == protocol) & (scores.label == label)].log_density  # noqa: E731
    np.testing.assert_allclose(of("paper", "real"), by_hand(train, train, 0.5))
    np.testing.assert_allclose(of("heldout", "real"), by_hand(train, real, 0.5))
    np.testing.assert_allclose(of("heldout", "fake"), by_hand(train, fake, 0.5))
    summary = protocols.summarise(scores, 30, 5, 0.5)
    assert summary["heldout"]["fake"]["mean"] == pytest.approx(of("heldout", "fake").mean())
    pairs = np.less.outer(of("heldout", "fake").to_numpy(), of("heldout", "real").to_numpy())
    assert summary["heldout"]["roc_auc"] == pytest.approx(pairs.mean())


@pytest.mark.parametrize(
    ("points", "queries", "bandwidth", "says"),
    [
        (np.zeros((0, 3)), np.zeros((1, 3)), 1.0, "at least one point"),
        (np.zeros((2, 3)), np.zeros((1, 4)), 1.0, "must share d"),
        (np.zeros((2, 3)), np.zeros((1, 3)), 0.0, "above 0"),
        (np.full((2, 3), np.nan), np.zeros((1, 3)), 1.0, "finite"),
    ],
)
def test_bad_input(points, queries, bandwidth, says):
    with pytest.raises(ValueError, match=says):
        kde.log_density(points, queries, bandwidth)
