"""Degraded images against slow references and closed forms, and a detector whose predictions are known."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as sk

from dfganext.evaluation import robustness
from dfganext.evaluation.decision import DecisionRule
from dfganext.evaluation.robustness import CONDITIONS, Condition
from dfganext.settings import Degradation

COLUMNS = [
    "transform", "strength", "images", "accuracy", "accuracy_low", "accuracy_high",
    "roc_auc", "roc_auc_low", "roc_auc_high", "fake_recall", "real_recall",
    "unsure", "novel", "decided_accuracy",
]  # fmt: skip


@pytest.fixture(scope="module")
def image():
    """Noise, smooth enough to survive an encoder."""
    pixels = ndimage.gaussian_filter(np.random.default_rng(0).normal(128, 400, (64, 64, 3)), (2, 2, 0))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def distance(one, two):
    return np.abs(one.astype(float) - two).mean()


def brightness(images):
    """A detector: p_fake is the mean brightness."""
    return images.mean(axis=(1, 2, 3)) / 255


def with_novelty(p_fake):
    """A detector's scores: every other image is novel."""
    return lambda images: np.stack([p_fake(images), np.arange(len(images)) % 2], axis=1)


def labelled(count, side=16):
    """Images whose brightness predicts the class, with errors."""
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.arange(count) % 2)
    levels = np.clip(rng.normal(110 + 30 * labels, 25), 30, 220)
    return np.clip(levels[:, None, None, None] + rng.normal(0, 5, (count, side, side, 3)), 0, 255).astype(
        np.uint8
    ), labels


@pytest.mark.parametrize("condition", CONDITIONS, ids=str)
@pytest.mark.parametrize("side", [16, 24, 64])
def test_shape_type_and_repeatability(condition, side, image):
    given = image[:side, :side].copy()
    kept = given.copy()
    found = robustness.apply(condition, given, seed=3)
    assert found.shape == given.shape and found.dtype == np.uint8
    assert np.array_equal(found, robustness.apply(condition, given, seed=3))
    assert np.array_equal(given, kept)


@pytest.mark.parametrize("condition", [one for one in CONDITIONS if one.transform != "noise"], ids=str)
def test_a_blank_image_stays_blank(condition):
    blank = np.full((32, 32, 3), 128, np.uint8)
    assert np.abs(robustness.apply(condition, blank, 0).astype(int) - 128).max() <= 1


@pytest.mark.parametrize("transform", ["jpeg", "webp", "blur", "downscale", "noise"])
def test_conditions_come_in_rising_severity(transform, image):
    lost = [distance(image, robustness.apply(one, image, 0)) for one in CONDITIONS if one.transform == transform]
    assert all(less < more for less, more in pairwise([0, *lost]))


def test_none_returns_the_image(image):
    assert np.array_equal(robustness.apply(CONDITIONS[0], image, 0), image)


@pytest.mark.parametrize("sigma", [0.5, 1, 2, 3])
def test_blur_is_gaussian(sigma, image):
    found = robustness.apply(Condition("blur", sigma), image, 0)
    expected = ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="mirror", truncate=3)
    assert np.abs(found - expected).max() <= 2


def test_noise_has_its_standard_deviation():
    grey = np.full((128, 128, 3), 128, np.uint8)
    for std in (5, 20):
        found = robustness.apply(Condition("noise", std), grey, 0).astype(float)
        # rounding adds 1/12 to the variance
        assert found.std() == pytest.approx(np.sqrt(std**2 + 1 / 12), rel=0.02)
        assert found.mean() == pytest.approx(128, abs=0.5)
    assert not np.array_equal(
        robustness.apply(Condition("noise", 5), grey, 0), robustness.apply(Condition("noise", 5), grey, 1)
    )


def test_noise_does_not_wrap_around():
    for level in (0, 255):
        found = robustness.apply(Condition("noise", 20), np.full((32, 32, 3), level, np.uint8), 0)
        assert np.abs(found.astype(int) - level).max() < 128


@pytest.mark.parametrize("share", [0.9, 0.8, 0.7])
@pytest.mark.parametrize("axis", [0, 1])
def test_crop_keeps_the_centre_and_magnifies_it(share, axis):
    side = 100
    ramp = np.broadcast_to((2 * np.arange(side, dtype=np.uint8) + 20)[:, None, None], (side, side, 3)).copy()
    found = robustness.apply(Condition("crop", share), np.swapaxes(ramp, 0, axis).copy(), 0)
    found = np.swapaxes(found, 0, axis)[5:-5, :, 0].astype(float)
    position = (np.arange(side) + 0.5 - side / 2) * share + side / 2 - 0.5  # of each pixel's centre in the original
    assert np.abs(found - (2 * position[5:-5, None] + 20)).max() <= 1


def test_downscaling_removes_what_the_smaller_image_cannot_hold():
    columns = np.arange(64)
    fine = np.broadcast_to((128 + 100 * (-1.0) ** columns)[None, :, None], (64, 64, 3)).astype(np.uint8)
    coarse = np.broadcast_to((128 + 100 * np.sin(columns * np.pi / 16))[None, :, None], (64, 64, 3)).astype(np.uint8)
    condition = Condition("downscale", 0.5)
    assert robustness.apply(condition, fine, 0)[:, 4:-4].std() < 5  # no alias in its place
    assert distance(robustness.apply(condition, coarse, 0), coarse) < 3


def test_an_unknown_transform_is_refused(image):
    with pytest.raises(ValueError, match="unknown transform 'sharpen'"):
        robustness.apply(Condition("sharpen", 1), image, 0)


def test_table_agrees_with_scikit_learn():
    images, labels = labelled(150)
    conditions = [Condition("none", 0), Condition("blur", 2)]
    table = robustness.measure(with_novelty(brightness), images, labels, 0.5, conditions)
    assert list(table.columns) == COLUMNS and list(table["transform"]) == ["none", "blur"]
    for row, condition in zip(table.itertuples(), conditions, strict=True):
        degraded = np.stack([robustness.apply(condition, one, 0) for one in images])
        predicted = brightness(degraded) > 0.5
        assert row.images == 150
        assert row.accuracy == pytest.approx(sk.accuracy_score(labels, predicted))
        assert row.fake_recall == pytest.approx(sk.recall_score(labels, predicted))
        assert row.real_recall == pytest.approx(sk.recall_score(labels, predicted, pos_label=0))
        assert row.roc_auc == pytest.approx(sk.roc_auc_score(labels, brightness(degraded)))
        assert row.accuracy_low < row.accuracy < row.accuracy_high
        assert row.roc_auc_low < row.roc_auc < row.roc_auc_high


def test_decisions_are_counted():
    images, labels = labelled(60)
    rule = DecisionRule(0.05, real_up_to=0.4, fake_above=0.6, novel_above=0.5)
    (row,) = robustness.measure(
        with_novelty(brightness), images, labels, 0.5, [Condition("none", 0)], rule=rule
    ).itertuples()
    p_fake, ordinary = brightness(images), np.arange(60) % 2 == 0
    decided = ordinary & ((p_fake > 0.6) | (p_fake <= 0.4))
    assert (row.unsure, row.novel) == (pytest.approx(1 - decided.mean()), 0.5)
    assert row.decided_accuracy == pytest.approx(((p_fake > 0.5) == labels)[decided].mean())


def test_blocks_are_bounded_and_change_nothing(tmp_path, monkeypatch):
    images, labels = labelled(150)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    sizes = []

    def predict(block):
        sizes.append(len(block))
        return block[:, 3, 4, 0] / 255  # one pixel: every grey level of noise counts

    conditions = [Condition("noise", 5), Condition("noise", 20), Condition("jpeg", 50)]
    table = robustness.measure(with_novelty(predict), mapped, labels, 0.5, conditions, seed=7)
    assert sizes == [64, 64, 22] * 3
    monkeypatch.setattr(robustness, "BLOCK", 7)
    assert table.equals(robustness.measure(with_novelty(predict), images, labels, 0.5, conditions, seed=7))
    other = robustness.measure(with_novelty(predict), images, labels, 0.5, conditions, seed=8)
    assert table.roc_auc[2] == other.roc_auc[2] and table.roc_auc[1] != other.roc_auc[1]


def test_noise_differs_from_row_to_row():
    seen = []
    grey = np.full((70, 16, 16, 3), 128, np.uint8)

    def predict(block):
        seen.extend(block)
        return np.zeros(len(block))

    robustness.measure(with_novelty(predict), grey, np.arange(70) % 2, 0.5, [Condition("noise", 10)])
    assert len({one.tobytes() for one in seen}) == 70


def test_two_images_are_enough():
    images = np.stack([np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)])
    row = robustness.measure(with_novelty(brightness), images, np.array([0, 1]), 0.5)
    assert len(row) == len(CONDITIONS) and (row.accuracy == 1).all() and (row.roc_auc == 1).all()


def test_a_score_on_the_threshold_is_predicted_real():
    images = np.zeros((4, 16, 16, 3), np.uint8)
    table = robustness.measure(
        with_novelty(lambda block: np.full(len(block), 0.5)), images, np.array([0, 1, 0, 1]), 0.5, CONDITIONS[:1]
    )
    assert (table.real_recall[0], table.fake_recall[0], table.roc_auc[0]) == (1, 0, 0.5)


def test_a_condition_is_trained_on_where_its_strength_is_in_the_range_of_training(shipped):
    augment = shipped.convnext.augment
    assert not any(robustness.is_trained_on(one, augment) for one in CONDITIONS)
    wide = {"compression": (50, 90), "blur": (0.1, 2.0), "zoom": (0.8, 1.3)}
    augment = dataclasses.replace(augment, **{name: Degradation(p=0.1, range=limits) for name, limits in wide.items()})
    trained_on = {(one.transform, one.strength) for one in CONDITIONS if robustness.is_trained_on(one, augment)}
    assert trained_on == {
        *(("jpeg", quality) for quality in (90, 75, 50)),
        *(("webp", quality) for quality in (90, 75, 50)),
        *(("blur", sigma) for sigma in (0.5, 1, 2)),
        *(("crop", share) for share in (0.9, 0.8)),
    }
