"""Temperature scaling against a grid search, and on logits whose true temperature is known."""

import numpy as np
import pytest

from dfganext.evaluation import calibration, metrics


def drawn(temperature: float, n: int = 20000, seed: int = 0):
    """Labels drawn with probability sigmoid(z), and the logits temperature * z."""
    rng = np.random.default_rng(seed)
    z = rng.normal(scale=2, size=n)
    return (rng.random(n) < 1 / (1 + np.exp(-z))).astype(int), temperature * z


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_finds_the_factor_of_overconfident_logits(temperature):
    labels, logits = drawn(temperature)
    found = calibration.fit_temperature(labels, logits)
    assert found == pytest.approx(temperature, rel=0.05)
    before, after = (metrics.probability(labels, calibration.apply(logits, t)) for t in (1.0, found))
    assert after["ece"] < 0.02 and after["log_loss"] <= before["log_loss"] + 1e-6


def test_matches_a_fine_grid_search():
    labels, logits = drawn(2.0, n=60)
    fakes = labels.sum()
    targets = np.where(labels == 1, (fakes + 1) / (fakes + 2), 1 / (60 - fakes + 2))
    candidates = np.exp(np.linspace(np.log(0.01), np.log(100), 40001))
    scaled = logits / candidates[:, None]
    losses = np.mean(targets * np.logaddexp(0, -scaled) + (1 - targets) * np.logaddexp(0, scaled), axis=1)
    assert calibration.fit_temperature(labels, logits) == pytest.approx(candidates[losses.argmin()], rel=1e-3)


def test_separated_classes_get_a_finite_certainty():
    labels = np.array([0] * 20 + [1] * 20)
    logits = np.where(labels == 1, 1.0, -1.0)
    temperature = calibration.fit_temperature(labels, logits)
    # all fakes have one logit, so the best p is the smoothed share
    assert calibration.apply(np.array([1.0]), temperature)[0] == pytest.approx(21 / 22, abs=1e-5)


def test_logits_of_the_wrong_sign_become_probabilities_near_a_half_in_the_same_order():
    labels, logits = drawn(1.0, n=500)
    temperature = calibration.fit_temperature(labels, -logits)
    p = calibration.apply(-logits, temperature)
    assert temperature == pytest.approx(calibration.RANGE[1], rel=1e-3)
    assert (np.argsort(p) == np.argsort(-logits)).all() and np.abs(p - 0.5).max() < 0.05


def test_no_overflow():
    assert calibration.apply(np.array([-1e4, 0, 1e4]), 0.01).tolist() == [0, 0.5, 1]
