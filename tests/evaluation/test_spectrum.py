"""The spectrum baseline against a transform written out, and on images with and without artefacts."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dfganext import images
from dfganext.evaluation import metrics, spectrum


def noise(count, side, seed):
    return np.random.default_rng(seed).integers(60, 196, (count, side, side, 3)).astype(np.uint8)


def planted(count, side, seed, strength):
    """Half of the images have a checkerboard, as transposed convolutions leave."""
    labels = np.arange(count) % 2
    board = strength * (-1.0) ** np.add.outer(np.arange(side), np.arange(side))
    pixels = noise(count, side, seed) + labels[:, None, None, None] * board[:, :, None]
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), labels


def held_out_auc(pixels, labels):
    found, cut, end = spectrum.features(pixels, bins=16), len(labels) // 2, 3 * len(labels) // 4
    baseline = spectrum.fit(found[:cut], labels[:cut], found[cut:end], labels[cut:end], seed=0)
    return roc_auc_score(labels[end:], baseline.probabilities(found[end:]))


def slow_log_dct(grey):
    """Type II, orthonormal, by its definition."""
    side = len(grey)
    place = np.arange(side)
    basis = np.cos(np.pi * np.outer(place, place + 0.5) / side) * np.sqrt(2 / side)
    basis[0] /= np.sqrt(2)
    return np.log(np.abs(basis @ grey @ basis.T) + spectrum.TINY)


@pytest.mark.parametrize(("side", "bins"), [(16, 64), (64, 64), (64, 16), (24, 16), (152, 64), (40, 7)])
def test_features_by_their_definition(side, bins):
    pixels = noise(3, side, 0)
    found = spectrum.features(pixels, bins)
    cells = min(side, bins)
    assert found.shape == (3, cells * cells) and found.dtype == np.float32
    for one, row in zip(pixels, found, strict=True):
        full = slow_log_dct(one @ np.array([0.299, 0.587, 0.114]))
        edges = [i * side // cells for i in range(cells + 1)]
        expected = [
            full[edges[i] : edges[i + 1], edges[j] : edges[j + 1]].mean() for i in range(cells) for j in range(cells)
        ]
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", [1, 77, 255])
def test_a_constant_image_has_only_its_mean(level):
    side = 32
    found = spectrum.features(np.full((1, side, side, 3), level, np.uint8))[0]
    assert found[0] == pytest.approx(np.log(level * side), abs=1e-5)  # an orthonormal transform keeps the norm
    np.testing.assert_allclose(found[1:], np.log(spectrum.TINY), atol=1e-3)


def test_a_black_image_is_finite():
    assert np.isfinite(spectrum.features(np.zeros((1, 16, 16, 3), np.uint8))).all()


def test_memory_mapped_blocks_change_nothing(tmp_path, monkeypatch):
    pixels = noise(70, 16, 1)
    np.save(tmp_path / "pixels.npy", pixels)
    whole = spectrum.features(np.load(tmp_path / "pixels.npy", mmap_mode="r"))
    monkeypatch.setattr(spectrum, "BLOCK", 9)
    np.testing.assert_allclose(whole, spectrum.features(pixels), rtol=1e-6)


def test_a_checkerboard_is_found():
    assert held_out_auc(*planted(400, 24, 2, strength=16)) > 0.95


def test_upsampling_is_found():
    labels = np.arange(400) % 2
    coarse = noise(400, 12, 2).repeat(2, axis=1).repeat(2, axis=2)
    pixels = np.where(
        labels[:, None, None, None] == 1, coarse, noise(400, 24, 3)
    )  # only correlations of neighbours differ
    assert held_out_auc(pixels, labels) > 0.95


def test_two_samples_of_one_distribution_are_not_separated():
    areas = [held_out_auc(*planted(400, 24, seed, strength=0)) for seed in range(3, 9)]
    assert abs(np.mean(areas) - 0.5) < 0.08


def test_c_is_the_best_on_validation_and_fits_repeat():
    pixels, labels = planted(200, 24, 9, strength=2)
    found = spectrum.features(pixels)
    halves = (found[:100], labels[:100], found[100:], labels[100:])
    baseline = spectrum.fit(*halves, seed=0)
    assert tuple(baseline.validation_log_loss) == spectrum.GRID
    assert baseline.validation_log_loss[baseline.C] == min(baseline.validation_log_loss.values())
    p_fake = baseline.probabilities(found[100:])
    assert p_fake.shape == (100,) and p_fake.min() >= 0 and p_fake.max() <= 1
    assert metrics.log_loss(labels[100:], p_fake) == pytest.approx(baseline.validation_log_loss[baseline.C])
    assert np.array_equal(p_fake, spectrum.fit(*halves, seed=1).probabilities(found[100:]))


def test_real_faces(faces):
    paths = [path for name in ("real", "fake") for path in sorted((faces / name).glob("*.jpg"))[:150]]
    labels = np.array([int(path.parent.name == "fake") for path in paths])
    pixels = np.stack([images.decode(path.read_bytes()) for path in paths])
    order = np.random.default_rng(0).permutation(len(labels))
    found, labels = spectrum.features(pixels[order]), labels[order]
    baseline = spectrum.fit(found[:180], labels[:180], found[180:225], labels[180:225], seed=0)
    area = roc_auc_score(labels[225:], baseline.probabilities(found[225:]))
    assert 0.5 <= area <= 0.9


def test_six_digits_of_a_probability_do_not_depend_on_rounding():
    """Rows in another order are added up with other rounding, as on another processor."""
    pixels, labels = planted(240, 32, seed=1, strength=3)
    found = spectrum.features(pixels)
    one = spectrum.fit(found[:160], labels[:160], found[160:200], labels[160:200], seed=0)
    order = np.random.default_rng(2).permutation(160)
    other = spectrum.fit(found[:160][order], labels[:160][order], found[160:200], labels[160:200], seed=0)
    assert one.C == other.C
    first, second = (model.probabilities(found[200:]) for model in (one, other))
    np.testing.assert_allclose(first, second, rtol=2e-7)
