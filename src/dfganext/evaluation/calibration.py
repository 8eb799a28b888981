"""Temperature scaling (Guo et al. 2017): one number that makes a classifier's probabilities mean what they say."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

RANGE = (0.01, 100.0)
"""Temperatures considered."""


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """The temperature T with which sigmoid(logit / T) explains the labels of validation images best.

    The log likelihood is taken against Platt's (1999) targets, (fakes + 1) / (fakes + 2) for a fake and 1 / (reals + 2) for
    a real image, in place of 1 and 0: where the two classes are separated without error, the best T would else be 0, and
    every probability 0 or 1 on the strength of a few images.

    Args:
        labels: (n,), 0 real and 1 fake.
        logits: (n,), of "fake".
    """
    fakes = int(np.sum(labels == 1))
    targets = np.where(labels == 1, (fakes + 1) / (fakes + 2), 1 / (len(labels) - fakes + 2))

    def loss(log_temperature: float) -> float:
        scaled = logits * np.exp(-log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - targets * scaled))

    low, high = np.log(RANGE)
    # convex in 1 / T, so there is one minimum
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-9})
    return round(float(np.exp(best.x)), 6)


def apply(logits: np.ndarray, temperature: float) -> np.ndarray:
    """p_fake = sigmoid(logit / temperature), without overflow."""
    return np.exp(-np.logaddexp(0, -logits / temperature))
