"""Metrics of other labelled sets: sets with one class, near duplicates of training images, and references by hand."""

import re

import numpy as np
import pandas as pd
import pytest
from mlflow.utils.validation import _validate_metric_name
from sklearn.metrics import roc_auc_score

from dfganext.evaluation import external
from dfganext.labels import NAMES


def images_of(labels: list[int], p_fake: list[float], seed: int = 0) -> pd.DataFrame:
    """Rows of images with random hashes, which are far apart."""
    rng = np.random.default_rng(seed)
    names = [NAMES[label] for label in labels]
    hashes = [rng.bytes(64).hex() for _ in labels]
    return pd.DataFrame(
        {
            "label": names,
            "p_fake": p_fake,
            "decision": ["unsure" if 0.3 <= p <= 0.5 else NAMES[int(p > 0.5)] for p in p_fake],
            "novel": False,
            "phash": [one[:64] for one in hashes],
            "phash_mirrored": [one[64:] for one in hashes],
            "format": "JPEG",
            "width": 256,
            "height": 256,
            "quantisation": "2.5 3",
        }
    )


def test_metrics_of_both_classes():
    images = images_of([0, 0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9, 0.4, 0.8])
    found = external.evaluate_set(images, 0.5, None, 44)
    assert (found["images"], found["real"], found["fake"]) == (6, 4, 2)
    assert (found["accuracy"], found["true_positive_rate"], found["false_positive_rate"]) == (4 / 6, 0.5, 0.25)
    assert found["roc_auc"] == roc_auc_score([0, 0, 0, 0, 1, 1], images.p_fake)
    assert found["roc_auc_against"] == "the set"
    assert found["decisions"]["unsure"] == 2 / 6
    assert found["decisions"]["accuracy"] == 3 / 4
    assert found["left_out"] is None
    assert found["files"] == {"format": {"JPEG": 6}, "size": {"256x256": 6}, "quantisation": {"2.5": 6}}


@pytest.mark.parametrize(("label", "other"), [(1, "real test images"), (0, "fake test images")])
def test_a_set_with_one_class_is_compared_with_the_other_class_of_the_test_split(label, other):
    own = external.Own(np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.3, 0.6, 0.5, 0.9]), np.arange(5))
    images = images_of([label] * 3, [0.2, 0.55, 0.7])
    found = external.evaluate_set(images, 0.5, None, 44, own)
    chosen = own.p_fake[own.labels != label]
    scores = np.concatenate([images.p_fake, chosen])
    assert found["roc_auc"] == roc_auc_score([label] * 3 + [1 - label] * len(chosen), scores)
    assert found["roc_auc_against"] == other
    missing = "false_positive_rate" if label else "true_positive_rate"
    assert found[missing] is None
    assert found["intervals"][missing] is None
    assert found["accuracy"] == (2 / 3 if label else 1 / 3)


def test_near_duplicates_among_those_test_images_count_once():
    rng = np.random.default_rng(0)
    images = images_of([1] * 30, list(rng.uniform(0.3, 1, 30)))
    once = rng.uniform(0, 0.7, 30)
    alone = external.Own(np.zeros(30, int), once, np.arange(30))
    twice = external.Own(np.zeros(60, int), np.repeat(once, 2), np.repeat(np.arange(30), 2))
    own, repeated = (external.evaluate_set(images, 0.5, None, 44, one) for one in (alone, twice))
    assert repeated["roc_auc"] == pytest.approx(own["roc_auc"])
    assert repeated["intervals"]["roc_auc"] == pytest.approx(own["intervals"]["roc_auc"], abs=0.01)


def test_near_duplicates_within_a_set_count_once_in_every_interval():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 20)
    p_fake = np.clip(rng.normal(0.3 + 0.4 * labels, 0.25), 0, 1)
    once = external.evaluate(labels, p_fake, 0.5)
    twice = [np.repeat(one, 2) for one in (labels, p_fake)]
    grouped = external.evaluate(*twice, 0.5, np.repeat(np.arange(40), 2))
    for name, (low, high) in once["intervals"].items():
        assert grouped[name] == pytest.approx(once[name])
        assert grouped["intervals"][name] == pytest.approx([low, high], abs=0.01)
        narrow_low, narrow_high = external.evaluate(*twice, 0.5)["intervals"][name]
        assert narrow_high - narrow_low < 0.9 * (high - low)


def test_groups_of_the_set_and_of_the_test_images_are_different_groups_whatever_their_numbers():
    rng = np.random.default_rng(0)
    labels, p_fake, groups = np.ones(30, int), rng.uniform(0.3, 1, 30), np.arange(30)
    reals = rng.uniform(0, 0.7, 30)
    near, far = (
        external.evaluate(labels, p_fake, 0.5, groups, external.Own(np.zeros(30, int), reals, groups + first))
        for first in (0, 5000)
    )
    assert near == far


def test_an_image_at_the_threshold_is_real_and_the_calibration_error_is_that_of_all_images():
    found = external.evaluate(np.array([0, 1]), np.array([0.4, 0.5]), 0.5)
    assert (found["true_positive_rate"], found["false_positive_rate"]) == (0, 0)
    assert found["ece"] == pytest.approx((0.4 + 0.5) / 2)


def test_the_line_about_a_set():
    found = external.evaluate_set(images_of([0, 0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9, 0.4, 0.8]), 0.5, None, 44)
    spans = {name: f"{100 * low:.1f} to {100 * high:.1f} %" for name, (low, high) in found["intervals"].items()}
    assert external.summary("a set", found | {"left_out": 1}) == (
        f"a set: 4 real and 2 fake images, accuracy 66.7 % ({spans['accuracy']}), fakes found 50.0 % "
        f"({spans['true_positive_rate']}), real images called fake 25.0 % ({spans['false_positive_rate']}), "
        "ROC AUC 0.750 (against the set), unsure about 33.3 %, 1 image left out: training images or near duplicates of them"
    )


def test_the_metrics_of_a_set_of_any_name_have_names_that_mlflow_takes():
    found = external.evaluate_set(images_of([0, 1], [0.1, 0.9]), 0.5, None, 44)
    for key in external.flat_metrics("stylegan3 (psi=0.7), äö", found):
        assert re.fullmatch(r"external_stylegan3 _psi_0\.7__ äö_\w+", key)
        _validate_metric_name(key)
    for key in external.flat_metrics("x" * 255, found):
        _validate_metric_name(key)


def test_near_duplicates_of_training_images_are_left_out():
    images = images_of([0, 1, 1], [0.1, 0.9, 0.2])
    trained_on = pd.concat([images.iloc[[2]], images_of([0] * 5, [0.5] * 5, seed=1)])
    found = external.evaluate_set(images, 0.5, trained_on, 8)
    assert (found["images"], found["left_out"], found["accuracy"]) == (2, 1, 1.0)


def test_a_set_of_training_images_has_no_metrics():
    images = images_of([0, 1], [0.1, 0.9])
    found = external.evaluate_set(images, 0.5, images, 8)
    assert (found["images"], found["left_out"], found["accuracy"], found["roc_auc"]) == (0, 2, None, None)
    assert external.flat_metrics("set", found) == {}
    assert external.summary("set", found).endswith(", 2 images left out: training images or near duplicates of them")
    assert len(external.plot_table({"set": found})) == 1
