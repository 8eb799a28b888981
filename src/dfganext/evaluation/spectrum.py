"""Baseline detector: logistic regression on the DCT spectrum (Frank et al. 2020, arXiv 2003.08685)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.fft import dctn
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from dfganext.evaluation import metrics
from dfganext.labels import FAKE

BLOCK = 32
"""Images transformed at a time."""
LUMA = (0.299, 0.587, 0.114)
"""Luminance from R, G, B (ITU-R BT.601)."""
TINY = 1e-6
"""Grey levels added before the logarithm: far below the effect of pixel rounding, far above that of float64 rounding."""
TOLERANCE = 1e-8
"""Of the solver: small enough that six digits of p_fake are the same on any processor."""
GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Values of C, the inverse strength of the L2 penalty, to select from."""


@dataclass(frozen=True)
class SpectrumBaseline:
    """A fitted baseline: the selected C, and the validation log loss, in nats, of every C in `GRID`."""

    pipeline: Pipeline
    C: float
    validation_log_loss: dict[float, float]

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """p_fake (n,) of `features` (n, k)."""
        return self.pipeline.predict_proba(features.astype(np.float64))[:, FAKE]


def features(images: np.ndarray, bins: int = 64) -> np.ndarray:
    """Log-spectrum of each image's luminance: log |orthonormal 2-D DCT-II|, averaged over a grid of bins x bins.

    Args:
        images: uint8, (N, S, S, 3); may be memory-mapped: one block is in memory at a time.
        bins: cells per side.

    Returns:
        float32, (N, min(S, bins) ** 2), row by row from the lowest vertical frequency.
    """
    number, side = images.shape[:2]
    cells = min(side, bins)
    edges = np.arange(cells) * side // cells
    widths = np.diff(np.append(edges, side))
    spectra = np.empty((number, cells * cells), np.float32)
    for start in range(0, number, BLOCK):
        grey = images[start : start + BLOCK] @ np.array(LUMA)
        spectrum = np.log(np.abs(dctn(grey, axes=(1, 2), norm="ortho")) + TINY)
        sums = np.add.reduceat(np.add.reduceat(spectrum, edges, axis=1), edges, axis=2)
        spectra[start : start + BLOCK] = (sums / np.outer(widths, widths)).reshape(len(grey), -1)
    return spectra


def fit(
    train: np.ndarray, train_labels: np.ndarray, validation: np.ndarray, validation_labels: np.ndarray, seed: int
) -> SpectrumBaseline:
    """Fit on training images with every C of `GRID`; keep the one with the lowest log loss on validation images.

    Args:
        train, validation: (n, k), from `features`.
        train_labels, validation_labels: (n,), both classes.
        seed: of the solver; L-BFGS draws no random numbers.
    """
    # In float32 the solver cannot reach TOLERANCE
    train, validation = train.astype(np.float64), validation.astype(np.float64)
    fitted, losses = {}, {}
    for strength in GRID:
        regression = LogisticRegression(C=strength, solver="lbfgs", tol=TOLERANCE, max_iter=10_000, random_state=seed)
        pipeline = make_pipeline(StandardScaler(), regression).fit(train, train_labels)
        fitted[strength] = pipeline
        losses[strength] = metrics.log_loss(validation_labels, pipeline.predict_proba(validation)[:, FAKE])
    best = min(losses, key=lambda strength: losses[strength])
    return SpectrumBaseline(fitted[best], best, losses)
