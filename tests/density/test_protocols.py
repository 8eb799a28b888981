"""Protocols and their summary against scikit-learn's estimator, whose sum is exact with one leaf, and closed forms."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import KernelDensity

from dfganext.data.arrays import Images
from dfganext.density import protocols

BANDWIDTH = 0.5


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training reals, held-out reals and fakes, in a dimension where the tree errs."""
    rng = np.random.default_rng(4)
    train, real, fake = (rng.standard_normal((rows, 256), dtype=np.float32) for rows in (300, 40, 30))
    return train, real, np.float32(0.8) * fake


@pytest.fixture(scope="module")
def scores(vectors) -> pd.DataFrame:
    return protocols.score(*vectors, BANDWIDTH)


def exact(points: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return KernelDensity(bandwidth=BANDWIDTH, leaf_size=len(points)).fit(points).score_samples(queries)


def of(scores: pd.DataFrame, protocol: str, label: str) -> pd.Series:
    rows = scores[(scores.protocol == protocol) & (scores.label == label)]
    return rows.set_index("row").log_density


def test_exact_protocols_score_the_right_vectors(vectors, scores):
    train, real, fake = vectors
    assert list(scores.columns) == ["protocol", "label", "row", "log_density"]
    expected = {("paper", "real"): train, ("paper", "fake"): fake, ("heldout", "real"): real, ("heldout", "fake"): fake}
    for (protocol, label), queries in expected.items():
        found = of(scores, protocol, label)
        assert found.index.tolist() == list(range(len(queries)))
        np.testing.assert_allclose(found, exact(train, queries), atol=1e-6)


def test_the_tree_is_scikit_learns(vectors, scores):
    train, _, fake = vectors
    tree = KernelDensity(bandwidth=BANDWIDTH).fit(train)
    for label, queries in (("real", train), ("fake", fake)):
        found = of(scores, "tree", label)
        assert len(found) == min(len(queries), protocols.TREE_QUERIES)
        np.testing.assert_array_equal(found, tree.score_samples(queries[found.index]))


@pytest.mark.parametrize(("most", "rows"), [(1, [0]), (2, [0, 15]), (4, [0, 7, 15, 22]), (99, list(range(30)))])
def test_rows_of_the_tree_are_evenly_spaced(vectors, most, rows, monkeypatch):
    monkeypatch.setattr(protocols, "TREE_QUERIES", most)
    assert of(protocols.score(*vectors, BANDWIDTH), "tree", "fake").index.tolist() == rows


def test_summary_of_the_exact_protocols(vectors, scores):
    train, _, _ = vectors
    summary = protocols.summarise(scores, *train.shape, BANDWIDTH)
    real, fake = of(scores, "heldout", "real").to_numpy(), of(scores, "heldout", "fake").to_numpy()
    assert summary["paper"]["fake"] == {"mean": pytest.approx(fake.mean()), "std": pytest.approx(fake.std())}
    assert summary["paper"]["real"]["mean"] == pytest.approx(summary["paper"]["lone_point"], rel=1e-12)
    assert summary["heldout"]["real"] == {"mean": pytest.approx(real.mean()), "std": pytest.approx(real.std())}
    assert summary["heldout"]["roc_auc"] == pytest.approx(np.less.outer(fake, real).mean())
    assert summary["heldout"]["higher"] == "fake"
    assert (summary["points"], summary["dimension"], summary["bandwidth"]) == (300, 256, BANDWIDTH)
    json.dumps(summary, allow_nan=False)


def test_the_trees_largest_error(vectors, scores):
    train, _, fake = vectors
    summary = protocols.summarise(scores, *train.shape, BANDWIDTH)["tree"]
    errors = [
        np.abs(of(scores, "tree", label) - exact(train, queries)[of(scores, "tree", label).index])
        for label, queries in (("real", train), ("fake", fake))
    ]
    assert summary["largest_error"] == pytest.approx(max(error.max() for error in errors), abs=1e-6)
    assert summary["images"] == sum(len(error) for error in errors)
    assert summary["fake"]["mean"] == pytest.approx(of(scores, "tree", "fake").mean())


def test_the_tree_is_right_in_two_dimensions():
    rng = np.random.default_rng(9)
    train, real, fake = rng.normal(size=(80, 2)), rng.normal(size=(20, 2)), rng.normal(size=(20, 2))
    summary = protocols.summarise(protocols.score(train, real, fake, BANDWIDTH), 80, 2, BANDWIDTH)
    assert summary["tree"]["largest_error"] < 1e-6


@pytest.mark.parametrize(("shift", "higher"), [(-2.0, "real"), (0.0, "fake")])
def test_interval_and_direction(shift, higher):
    rng = np.random.default_rng(10)
    train, real, fake = rng.normal(size=(100, 3)), rng.normal(size=(60, 3)), shift + 0.7 * rng.normal(size=(60, 3))
    scores = protocols.score(train, real, fake, BANDWIDTH)
    heldout = protocols.summarise(scores, 100, 3, BANDWIDTH)["heldout"]
    alike = scores.assign(group=scores.row // 4)
    grouped = protocols.summarise(alike, 100, 3, BANDWIDTH)["heldout"]["roc_auc_interval"]
    low, high = heldout["roc_auc_interval"]
    assert low < heldout["roc_auc"] < high
    assert 0 < high - low < 0.3
    assert heldout["higher"] == higher
    assert (heldout["roc_auc"] > 0.5) == (higher == "real")
    assert grouped[1] - grouped[0] != pytest.approx(high - low, rel=0.01)


def test_a_lone_point_has_the_papers_constant():
    """d = 16384, h = 0.2, n = 10000 give the figure of the paper's Table II for real images, whatever the images."""
    assert protocols.lone_point(16384, 0.2, 10000) == pytest.approx(11303.931489, abs=1e-6)
    scores = protocols.score(np.zeros((1, 4)), np.ones((1, 4)), np.ones((1, 4)), 0.2)
    summary = protocols.summarise(scores, points=10000, dimension=16384, bandwidth=0.2)
    assert summary["paper"]["lone_point"] == pytest.approx(11303.931489, abs=1e-6)


def test_every_score_has_its_image_and_group(vectors, scores):
    train, real, fake = (len(part) for part in vectors)

    def images(prefix, reals, fakes):
        labels = np.random.default_rng(0).permutation(np.repeat([0, 1], [reals, fakes]))
        paths = [f"{prefix}{number}" for number in range(len(labels))]
        return Images(np.zeros((len(labels), 1, 1, 3), np.uint8), labels, paths, np.arange(len(labels)) // 3)

    fitted, heldout = images("train", train, 20), images("test", real, fake)
    found = protocols.identify(scores, fitted, heldout)
    assert len(found) == len(scores)
    for row in found.itertuples():
        part = fitted if row.label == "real" and row.protocol != "heldout" else heldout
        number = part.only(int(row.label == "fake"))[row.row]
        assert (row.path, row.group) == (part.paths[number], part.groups[number])
