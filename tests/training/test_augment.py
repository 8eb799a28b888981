"""Degradations: what each does, its range and probability, and that a sample's seed decides it."""

import dataclasses
from collections import Counter

import cv2
import numpy as np
import pytest
from scipy import stats

from dfganext.errors import UserError
from dfganext.settings import STRENGTHS, Augment, Degradation
from dfganext.training.augment import AugmentedImages, compose, set_seed

SIZE = 64
OFF = Augment(
    horizontal_flip=0.0,
    vertical_flip=0.0,
    rotation=0.0,
    distortion=0.0,
    colour_jitter=0.0,
    **{name: Degradation(p=0.0, range=limits) for name, limits in STRENGTHS.items()},
    crop=None,
)


def only(name: str, low: float, high: float, p: float = 1.0) -> Augment:
    return dataclasses.replace(OFF, **{name: Degradation(p=p, range=(low, high))})


@pytest.fixture
def image() -> np.ndarray:
    """Noise with detail at every scale."""
    rng = np.random.default_rng(0)
    scales = [np.kron(rng.normal(0, 25, (SIZE // n, SIZE // n, 3)), np.ones((n, n, 1))) for n in (1, 2, 4, 8)]
    return np.clip(128 + sum(scales), 0, 255).astype(np.uint8)


def drawn(augment: Augment, image: np.ndarray, count: int = 40) -> list[np.ndarray]:
    transform = compose(augment, SIZE)
    results = []
    for seed in range(count):
        set_seed(transform, seed)
        results.append(transform(image=image)["image"])
    return results


def test_augmentations_are_drawn_independently():
    """Flips, blur and noise with p = 0.5 each: all sixteen combinations are equally frequent."""
    size, count = 32, 800
    ramp = np.add.outer(4 * np.arange(size), np.arange(size))[..., None].repeat(3, 2).astype(np.uint8)
    augment = dataclasses.replace(
        OFF,
        horizontal_flip=0.5,
        vertical_flip=0.5,
        blur=Degradation(0.5, (8, 8)),
        noise=Degradation(0.5, (3, 3)),
    )
    images = AugmentedImages(np.stack([ramp] * count), np.zeros(count, int), augment, seed=1)
    combinations: Counter[tuple[bool, ...]] = Counter()
    for row in range(count):
        one = images[0, row][0].numpy().astype(float).mean(axis=2)
        flips = one[:, :8].mean() > one[:, -8:].mean(), one[:8].mean() > one[-8:].mean()
        noisy = np.abs(np.diff(one, n=2, axis=1)).mean() > 0.5
        blurred = abs(one[:2].mean() - one[-2:].mean()) < 110
        combinations[(*map(bool, flips), bool(noisy), bool(blurred))] += 1
    assert len(combinations) == 16
    assert stats.chisquare(list(combinations.values())).pvalue > 0.001


def test_without_degradations_nothing_changes(image):
    assert all(np.array_equal(one, image) for one in drawn(OFF, image, 3))


@pytest.mark.parametrize("name", STRENGTHS)
def test_each_changes_as_many_samples_as_its_probability_says(image, name):
    strong = {"zoom": (0.7, 0.8), "rescale": (0.3, 0.5), "blur": (1, 2), "noise": (5, 9), "compression": (30, 60)}[name]
    changed = [not np.array_equal(one, image) for one in drawn(only(name, *strong, p=0.3), image, 400)]
    assert 0.2 < np.mean(changed) < 0.4
    results = drawn(only(name, *strong), image)
    assert all(one.shape == image.shape and one.dtype == np.uint8 for one in results)
    assert not any(np.array_equal(one, image) for one in results)


@pytest.mark.parametrize(
    ("name", "mild", "strong"),
    [("rescale", 0.9, 0.3), ("blur", 0.3, 2.5), ("compression", 95, 20)],
)
def test_stronger_degradations_change_more(image, name, mild, strong):
    changes = []
    for at in (mild, strong):
        results = drawn(only(name, at, at), image, 10)
        changes.append(np.mean([np.abs(one.astype(int) - image).mean() for one in results]))
    assert 0 < 1.2 * changes[0] < changes[1]


def test_noise_has_its_standard_deviation_in_grey_levels():
    grey = np.full((SIZE, SIZE, 3), 128, np.uint8)
    for std in (2, 10):
        stds = [one.astype(float).std() for one in drawn(only("noise", std, std), grey, 10)]
        assert np.mean(stds) == pytest.approx(std, abs=0.5)  # albumentations truncates noise to whole levels


def test_blur_is_a_gaussian_of_the_given_standard_deviation():
    point = np.zeros((SIZE, SIZE, 3), np.uint8)
    point[SIZE // 2, SIZE // 2] = 255
    (blurred, *_) = drawn(only("blur", 2, 2), point, 1)
    reference = cv2.GaussianBlur(point, (0, 0), 2)
    assert np.abs(blurred.astype(int) - reference).max() <= 1


@pytest.mark.parametrize(("factor", "period"), [(0.5, 4), (2.0, 16)])
def test_zoom_changes_the_scale_and_keeps_the_size(factor, period):
    """Stripes of a period of 8 pixels."""
    stripes = np.broadcast_to(
        np.where(np.arange(SIZE) % 8 < 4, 60, 190).astype(np.uint8)[None, :, None], (SIZE, SIZE, 3)
    )
    for zoomed in drawn(only("zoom", factor, factor), np.ascontiguousarray(stripes), 5):
        row = zoomed[SIZE // 2, :, 0].astype(float)
        spectrum = np.abs(np.fft.rfft(row - row.mean()))
        assert zoomed.shape == (SIZE, SIZE, 3)
        assert SIZE / np.argmax(spectrum) == pytest.approx(period, rel=0.35)  # reflection shifts the phase


def test_crops_are_parts_of_the_image_at_its_own_resolution(image):
    places = set()
    for crop in drawn(dataclasses.replace(OFF, crop=32), image):
        assert crop.shape == (32, 32, 3)
        distance = cv2.matchTemplate(image, crop, cv2.TM_SQDIFF)
        y, x = np.unravel_index(distance.argmin(), distance.shape)
        assert np.array_equal(image[y : y + 32, x : x + 32], crop)
        places.add((y, x))
    assert len(places) > 20


def test_a_sample_depends_on_seed_epoch_and_row_only(image):
    strong = dataclasses.replace(OFF, **{name: Degradation(p=0.8, range=limits) for name, limits in STRENGTHS.items()})
    strong = dataclasses.replace(strong, rescale=Degradation(p=0.8, range=(0.3, 0.9)), crop=32)
    pixels, labels = np.stack([image] * 3), np.zeros(3, int)
    one, other = (AugmentedImages(pixels, labels, strong, 5) for _ in range(2))
    keys = [(epoch, row) for epoch in range(3) for row in range(3)]
    first = {key: one[key][0].numpy() for key in keys}
    for key in reversed(keys):
        assert np.array_equal(other[key][0].numpy(), first[key])
    assert len({array.tobytes() for array in first.values()}) == len(keys)
    assert not np.array_equal(AugmentedImages(pixels, labels, strong, 6)[0, 0][0].numpy(), first[0, 0])


@pytest.mark.parametrize("limits", [(3.0, 0.1), (0.0, 3.0), (0.1, 99.0)])
def test_wrong_ranges_are_refused(limits):
    with pytest.raises(UserError, match=r"convnext\.augment\.blur\.range: \[.*\] must be two numbers from 0\.1 to 50"):
        only("blur", *limits)
