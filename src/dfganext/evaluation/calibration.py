"""Temperature scaling (Guo et al. 2017): one parameter that calibrates a classifier's probabilities."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

RANGE = (0.01, 100.0)
"""Lowest and highest temperature that `fit_temperature` can return."""


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """The temperature T that maximises the likelihood of validation labels under sigmoid(logit / T).

    The labels are Platt's (1999) targets, (fakes + 1) / (fakes + 2) for a fake and 1 / (reals + 2) for a real image: with 1 and
    0, a few perfectly separated images would give T = 0.

    Args:
        labels: (n,), 0 real and 1 fake.
        logits: (n,), logits of "fake".
    """
    fakes = int(np.sum(labels == 1))
    targets = np.where(labels == 1, (fakes + 1) / (fakes + 2), 1 / (len(labels) - fakes + 2))

    def loss(log_temperature: float) -> float:
        scaled = logits * np.exp(-log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - targets * scaled))

    # the loss is convex in 1 / T, so there is one minimum
    best = minimize_scalar(loss, bounds=tuple(np.log(RANGE)), method="bounded", options={"xatol": 1e-9})
    return round(float(np.exp(best.x)), 6)


def apply(logits: np.ndarray, temperature: float) -> np.ndarray:
    """p_fake = sigmoid(logit / temperature), without overflow."""
    return np.exp(-np.logaddexp(0, -logits / temperature))
