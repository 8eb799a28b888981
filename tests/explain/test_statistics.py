"""Statistics of maps against definitions written out, and maps whose statistics are known."""

import numpy as np
import pytest

from dfganext.explain import statistics
from dfganext.settings import Face

FACE = Face(0.5, 0.55, 0.6, 0.8)


def one(cells) -> dict[str, float]:
    return statistics.describe(np.asarray(cells, float)[None], FACE).iloc[0].to_dict()


def test_an_even_map():
    found = one(np.full((4, 4), 3.0))
    assert found["entropy"] == pytest.approx(1) and found["effective_area"] == pytest.approx(1)
    assert found["gini"] == pytest.approx(0) and found["above_half"] == 1
    assert (found["maximum"], found["mean"]) == (3, 3)
    assert found["face_mass"] == pytest.approx(statistics.area_of(FACE), abs=1e-4)


@pytest.mark.parametrize("face", [FACE, Face(0.5, 0.54, 0.56, 0.76), Face(0.5, 0.5, 1.0, 1.0)])
def test_the_area_of_an_ellipse_within_the_image(face):
    assert statistics.area_of(face) == pytest.approx(np.pi / 4 * face.width * face.height, abs=1e-5)


@pytest.mark.parametrize(
    ("face", "area"), [(Face(0.0, 0.5, 1.0, 1.0), np.pi / 8), (Face(1.0, 1.0, 0.6, 0.4), np.pi / 16 * 0.24)]
)
def test_parts_of_the_ellipse_outside_the_image_do_not_count(face, area):
    assert statistics.area_of(face) == pytest.approx(area, abs=1e-5)
    even = statistics.describe(np.ones((1, 12, 12)), face).face_mass[0]
    assert statistics.area_of(face) == pytest.approx(even, abs=1e-4), "chance is what an even map has"


def test_a_single_cell():
    cells = np.zeros((5, 5))
    cells[2, 2] = 7
    found = one(cells)
    assert found["entropy"] == pytest.approx(0) and found["effective_area"] == pytest.approx(1 / 25)
    assert found["gini"] == pytest.approx(24 / 25) and found["above_half"] == pytest.approx(1 / 25)
    assert found["face_mass"] == pytest.approx(1)


def test_k_equal_cells_have_the_effective_area_of_k():
    cells = np.zeros(36)
    cells[:9] = 2
    assert one(cells.reshape(6, 6))["effective_area"] == pytest.approx(9 / 36)


def test_gini_is_half_the_relative_mean_difference():
    cells = np.random.default_rng(0).exponential(size=(6, 7))
    x = cells.ravel()
    expected = np.abs(np.subtract.outer(x, x)).mean() / (2 * x.mean())
    assert one(cells)["gini"] == pytest.approx(expected)


def test_scale_changes_only_intensity():
    cells = np.random.default_rng(1).random((3, 5))
    small, large = one(cells), one(1000 * cells)
    assert large["maximum"] == pytest.approx(1000 * small["maximum"])
    for name in ("entropy", "effective_area", "above_half", "gini", "face_mass"):
        assert small[name] == pytest.approx(large[name])


def test_a_blank_map_has_no_shape():
    found = one(np.zeros((3, 3)))
    assert found["maximum"] == found["mean"] == 0
    assert all(np.isnan(found[name]) for name in ("entropy", "effective_area", "above_half", "gini", "face_mass"))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 3), (8, 8), (5, 9)])
@pytest.mark.parametrize("face", [FACE, Face(0.3, 0.4, 0.2, 0.5), Face(0.5, 0.5, 1.0, 1.0), Face(0.9, 0.5, 0.6, 0.3)])
def test_the_share_of_each_cell_in_the_ellipse(rows, columns, face):
    # slow reference: the share of points of a fine grid
    y, x = (np.arange(2520) + 0.5)[:, None] / 2520, (np.arange(2520) + 0.5)[None] / 2520
    inside = ((x - face.x) / (face.width / 2)) ** 2 + ((y - face.y) / (face.height / 2)) ** 2 <= 1
    expected = inside.reshape(rows, 2520 // rows, columns, 2520 // columns).mean(axis=(1, 3))
    np.testing.assert_allclose(statistics.face_weights(rows, columns, face), expected, atol=2e-3)


def test_means_by_class_skip_blank_maps():
    maps = np.stack([np.zeros((2, 2)), np.eye(2), np.ones((2, 2))])
    table = statistics.describe(maps, FACE).assign(label=["real", "fake", "fake"], target="fake")
    assert list(statistics.means(table)) == ["fake"]
    means = statistics.means(table)["fake"]
    assert means["real"]["entropy"] is None and means["real"]["maximum"] == 0
    assert means["fake"]["entropy"] == pytest.approx((0.5 + 1) / 2)
