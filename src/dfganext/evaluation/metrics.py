"""Metrics of a binary detector. Labels are 0 real and 1 fake; a higher score means "more likely fake".

With `weights` (b, n), how often each of b bootstrap resamples holds each image, a function returns arrays (b,) in place of
floats; scikit-learn takes one weighting per call, and a bootstrap needs thousands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn import metrics as sk

Metrics = dict[str, Any]
"""Name to float; to float64 (b,) where weights (b, n) are given."""

ECE_BINS = 15
FALSE_POSITIVE_RATES = {"tpr_at_1_percent_fpr": 0.01, "tpr_at_half_percent_fpr": 0.005}


def at_threshold(labels: np.ndarray, scores: np.ndarray, threshold: float) -> Metrics:
    """Accuracy, precision, recall and F1; fake is predicted where score > threshold. 0 where a denominator is 0."""
    predicted = scores > threshold
    (true_real, false_fake), (false_real, true_fake) = sk.confusion_matrix(labels, predicted, labels=[0, 1]).tolist()
    return {
        "accuracy": (true_fake + true_real) / len(labels),
        "precision": true_fake / max(1, true_fake + false_fake),
        "recall": true_fake / max(1, true_fake + false_real),
        "f1": 2 * true_fake / max(1, 2 * true_fake + false_fake + false_real),
    }


def ranking(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> Metrics:
    """ROC AUC, average precision, equal error rate (interpolated along the ROC curve), and the highest true positive rate at a
    false positive rate of at most 1 % and 0.5 %: metrics that depend on the order of the scores only.

    Args:
        weights: (b, n), zero or above; each row must leave weight on both classes.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    false, true = _positives(labels, scores, weights)
    reals, fakes = false[..., -1], true[..., -1]
    fpr, tpr = false / reals[..., None], true / fakes[..., None]
    precision = true / np.where(true + false > 0, true + false, 1)
    pairs_in_order = np.sum(np.diff(false) * (true[..., 1:] + true[..., :-1]) / 2, axis=-1)
    return {
        "roc_auc": pairs_in_order / (reals * fakes),
        "average_precision": np.sum(np.diff(true) * precision[..., 1:], axis=-1) / fakes,
        "eer": _equal_error_rate(fpr, tpr),
        **{name: np.max(np.where(fpr <= rate + 1e-12, tpr, 0), axis=-1) for name, rate in FALSE_POSITIVE_RATES.items()},
    }


def probability(labels: np.ndarray, p_fake: np.ndarray, weights: np.ndarray | None = None) -> Metrics:
    """Log loss in nats, Brier score, expected calibration error. ValueError where a probability is NaN or infinite."""
    return {
        "log_loss": _mean(losses(labels, p_fake), weights),
        "brier": _mean((p_fake - labels) ** 2, weights),
        "ece": expected_calibration_error(labels, p_fake, weights),
    }


def expected_calibration_error(labels: np.ndarray, p_fake: np.ndarray, weights: np.ndarray | None = None) -> Any:
    """Mean over images of |mean p_fake - share of fakes| in their bin of p_fake, of 15 equal bins (Naeini et al. 2015)."""
    weights = np.ones(len(labels)) if weights is None else weights
    number = bin_of(p_fake, ECE_BINS)
    gaps = [np.abs(weights[..., number == one] @ (p_fake - labels)[number == one]) for one in np.unique(number)]
    return np.sum(gaps, axis=0) / weights.sum(axis=-1)


def reliability(labels: np.ndarray, p_fake: np.ndarray, bins: int = ECE_BINS) -> pd.DataFrame:
    """One row per bin of p_fake that holds images: low, high, images, p_fake (mean), share_fake."""
    number = bin_of(p_fake, bins)
    rows = []
    for one in np.unique(number):
        inside = number == one
        rows.append((one / bins, (one + 1) / bins, int(inside.sum()), p_fake[inside].mean(), labels[inside].mean()))
    return pd.DataFrame(rows, columns=["low", "high", "images", "p_fake", "share_fake"])


def bin_of(p_fake: np.ndarray, bins: int) -> np.ndarray:
    """Index of each probability's bin, of equal bins of 0...1; 1 belongs to the last."""
    return np.minimum((p_fake * bins).astype(int), bins - 1)


def best_threshold(labels: np.ndarray, scores: np.ndarray, preferred: float) -> float:
    """The threshold with the highest balanced accuracy on these images; among equals, the one nearest to `preferred`.

    Candidates are `preferred`, the midpoints between neighbouring scores, and one threshold beyond either end.
    """
    ordered = np.unique(scores)
    ends = [ordered[0] - 1e-9 * max(1, abs(ordered[0])), ordered[-1]]
    candidates = np.concatenate([[preferred], (ordered[1:] + ordered[:-1]) / 2, ends])
    real, fake = np.sort(scores[labels == 0]), np.sort(scores[labels == 1])
    true_real = np.searchsorted(real, candidates, side="right") / len(real)
    true_fake = 1 - np.searchsorted(fake, candidates, side="right") / len(fake)
    balanced = true_real + true_fake
    best = candidates[balanced >= balanced.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - preferred))])


def log_loss(labels: np.ndarray, p_fake: np.ndarray) -> float:
    """Mean of `losses`."""
    return float(losses(labels, p_fake).mean())


def losses(labels: np.ndarray, p_fake: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each image, in nats: (n,). ValueError where a probability is NaN or infinite."""
    _refuse_infinite(p_fake)
    clipped = np.clip(p_fake, np.finfo(float).eps, 1 - np.finfo(float).eps)  # as scikit-learn does
    return -np.log(np.where(labels == 1, clipped, 1 - clipped))


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Columns false_positive_rate, true_positive_rate, threshold."""
    fpr, tpr, threshold = sk.roc_curve(labels, scores)
    return pd.DataFrame({"false_positive_rate": fpr, "true_positive_rate": tpr, "threshold": threshold})


def precision_recall_curve(labels: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Columns recall, precision, sorted by recall."""
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    return pd.DataFrame({"recall": recall[::-1], "precision": precision[::-1]})


def _positives(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the false and of the true positives at each threshold, the highest first: (thresholds,) or (b, thresholds).

    The first threshold is above all scores.
    """
    _refuse_infinite(scores)
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    ordered = np.ones(len(scores)) if weights is None else weights[:, order]

    def counted(members: np.ndarray) -> np.ndarray:
        totals = np.cumsum(ordered * members[order], axis=-1)[..., last_of_score]
        return np.concatenate([np.zeros_like(totals[..., :1]), totals], axis=-1)

    return counted(labels == 0), counted(labels == 1)


def _equal_error_rate(fpr: np.ndarray, tpr: np.ndarray) -> Any:
    """The error rate, 0...1, where false positive and false negative rates meet: of curves (..., thresholds)."""
    gap = fpr + tpr - 1  # rises from -1 to 1; zero where fpr = 1 - tpr
    after = np.argmax(gap >= 0, axis=-1)[..., None]
    (fpr_before, fpr_after), (gap_before, gap_after) = (
        [np.take_along_axis(values, place, axis=-1)[..., 0] for place in (after - 1, after)] for values in (fpr, gap)
    )
    return fpr_before + -gap_before / (gap_after - gap_before) * (fpr_after - fpr_before)


def _mean(values: np.ndarray, weights: np.ndarray | None) -> Any:
    return values.mean() if weights is None else weights @ values / weights.sum(axis=-1)


def _refuse_infinite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError("scores hold NaN or infinity: has training diverged?")
